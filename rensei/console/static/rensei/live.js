// What a run writes, put into the page as it arrives: the answer of a model, or the output and the log of a program. At
// its end, the page asks for the part with its cost.
(() => {
  "use strict";
  const AGAIN_MS = 2000;

  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "";;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s, 2)));
        if (lines.data) yield { kind: lines.event, data: JSON.parse(lines.data) };
      }
    }
  }

  // A frame that is scrolled to its end stays there. One that a person reads further up stays where it is.
  function append(element, words) {
    const frame = element.closest("pre") || element;
    const atEnd = frame.scrollHeight - frame.scrollTop - frame.clientHeight < 8;
    element.append(words);
    if (atEnd) frame.scrollTop = frame.scrollHeight;
  }

  async function follow(live) {
    const text = live.querySelector("[data-text]"), log = live.querySelector("[data-log]");
    const note = live.querySelector("[data-note]");
    const say = (words) => { if (note) note.textContent = words; };
    const { events: address, org } = live.dataset;
    let ended = false;
    try {
      const answer = await fetch(address, { headers: { Accept: "text/event-stream", "X-Rensei-Org": org } });
      if (answer.ok) {
        text.textContent = "";
        if (log) log.textContent = "";
        for await (const { kind, data } of events(answer)) {
          if (!live.isConnected) return;
          if (kind === "state" && data.state === "RUNNING") say("Waiting for the first words");
          if (kind === "delta") {
            say("The answer is being written");
            append(text, data.text);
          }
          if (kind === "log" && log) append(log, data.text);
          ended = kind === "done";
        }
      }
    } catch { /* The page is asked for instead. */ }
    // A run that goes on, because the stream was refused or cut off, comes back and is followed again.
    const show = () => { if (live.isConnected) htmx.trigger(live, "ended"); else clearInterval(again); };
    const again = setInterval(show, AGAIN_MS);
    if (ended) show();
  }

  document.body.addEventListener("htmx:load", ({ detail }) => {
    const scope = detail.elt.matches("[data-live]") ? [detail.elt] : detail.elt.querySelectorAll("[data-live]");
    for (const live of scope) {
      if (live.dataset.live) continue;
      live.dataset.live = "followed";
      follow(live);
    }
  });
})();
