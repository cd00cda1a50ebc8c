import { useEffect, useState } from "react";
import L8 from "./l8.js";

/** What the backend tells as it happens, and what it says back. */
export default function Live() {
  const [ticks, setTicks] = useState([]);
  const [echo, setEcho] = useState("");

  useEffect(() => {
    const events = new L8.EventSource("/events?n=3&gap=0.01");
    events.addEventListener("tick", ({ data }) => setTicks((all) => (all.includes(data) ? all : [...all, data])));
    return () => events.close();
  }, []);

  useEffect(() => {
    const socket = new L8.WebSocket("/ws", "chat");
    socket.onopen = () => socket.send("hello");
    socket.onmessage = ({ data }) => setEcho(data);
    return () => socket.close();
  }, []);

  return (
    <p id="live">
      {ticks.join(" ")} {echo}
    </p>
  );
}
