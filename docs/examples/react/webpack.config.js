export default {
  mode: "production",
  entry: "./src/main.jsx",
  module: {
    rules: [{ test: /\.jsx$/, loader: "esbuild-loader", options: { jsx: "automatic" } }],
    parser: { javascript: { importMeta: false } }, // left as it is: webpack would write where the source lies on this machine
  },
  // Modules, which load others by `import`: the usual output makes script elements, and the policy does not let it.
  output: { module: true, filename: "[name].js" },
};
