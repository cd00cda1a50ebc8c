import { useActionState, useEffect, useState } from "react";
import L8, { L8Error } from "./l8.js";

/** All notes, and a form that adds one. */
export function Notes() {
  const [notes, setNotes] = useState([]);
  const [said, add] = useActionState(async (before, form) => {
    try {
      const answer = await L8.fetch("/notes", { method: "POST", body: form });
      const note = await answer.json();
      setNotes((all) => [...all, note]);
      return `kept as ${note.number}`;
    } catch (error) {
      if (error instanceof L8Error) return `${error.code}: ${error.hint}`;
      throw error;
    }
  }, "");

  useEffect(() => {
    const left = new AbortController();
    L8.fetch("/notes", { signal: left.signal })
      .then((answer) => answer.json())
      .then(setNotes)
      .catch((error) => left.signal.aborted || console.error(error));
    return () => left.abort();
  }, []);

  return (
    <>
      <ul style={{ listStyleType: "square" }}>
        {notes.map(({ number, text }) => (
          <li key={number}>{text}</li>
        ))}
      </ul>
      <form action={add}>
        <input name="text" required />
        <button>Add</button>
        <output>{said}</output>
      </form>
    </>
  );
}
