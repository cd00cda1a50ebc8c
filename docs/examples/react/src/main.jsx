import { lazy, StrictMode, Suspense, useState } from "react";
import { createRoot } from "react-dom/client";
import { Notes } from "./notes.jsx";

const Live = lazy(() => import("./live.jsx")); // a file of its own, loaded when it is wanted

function App() {
  const [live, setLive] = useState(false);
  return (
    <>
      <h1>Notes</h1>
      <Notes />
      <button onClick={() => setLive(true)}>Live</button>
      <Suspense fallback={<p>...</p>}>{live && <Live />}</Suspense>
    </>
  );
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
