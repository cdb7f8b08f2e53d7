// Keys: a palette of pages, profiles, runs and documents, and letters that lead to pages. Links do all of this as well.
(() => {
  "use strict";
  const palette = document.getElementById("palette");
  if (!palette) return;
  const OFF = "keys-off", OPTION = "[role=option]:not([hidden])";
  let opener = null, going = 0;
  const lettersAreOff = () => localStorage.getItem(OFF) === "1";
  const field = () => palette.querySelector("[role=combobox]");
  const shown = () => [...palette.querySelectorAll(OPTION)];

  async function open() {
    if (palette.open || document.querySelector("dialog[open]")) return;
    opener = document.activeElement;
    palette.showModal();
    if (!field()) {
      const answer = await fetch(palette.dataset.from, { headers: { "HX-Request": "true" } }).catch(() => null);
      if (!answer || !answer.ok) {
        palette.close();
        location.assign(answer?.headers.get("HX-Redirect") || palette.dataset.without);
        return;
      }
      palette.innerHTML = await answer.text();
      addPages(palette.querySelector("[data-pages]"));
      const letters = palette.querySelector("[data-letters]");
      letters.checked = !lettersAreOff();
      letters.addEventListener("change", () => localStorage.setItem(OFF, letters.checked ? "0" : "1"));
    }
    field().value = "";
    narrow();
    field().focus();
  }

  // The pages are those of the navigation, which shows what this person may open.
  function addPages(group) {
    for (const [number, link] of document.querySelectorAll(".rail__link").entries()) {
      const option = document.createElement("a"), key = link.dataset.go;
      Object.assign(option, { id: `page-${number}`, className: "palette__option", href: link.href, tabIndex: -1 });
      option.role = "option";
      option.textContent = link.textContent.trim();
      if (key) option.insertAdjacentHTML("beforeend", `<kbd>G ${key.toUpperCase()}</kbd>`);
      group.append(option);
    }
  }

  // What is typed narrows the list; it may also be the id of a run, or words to search in runs.
  function narrow() {
    const text = field().value.trim(), words = text.toLowerCase().split(/\s+/);
    for (const option of palette.querySelectorAll("[role=option]")) {
      const search = option.dataset.search;
      if (search) {
        option.hidden = !text;
        option.querySelector("[data-text]").textContent = text;
        option.href = search + encodeURIComponent(text);
      } else option.hidden = !words.every((word) => option.textContent.toLowerCase().includes(word));
    }
    choose(shown()[0]);
    palette.querySelector("[role=status]").textContent = `${shown().length} found`;
  }
  function choose(option) {
    for (const one of palette.querySelectorAll("[aria-selected=true]")) one.setAttribute("aria-selected", "false");
    field().setAttribute("aria-activedescendant", option ? option.id : "");
    if (!option) return;
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
  }

  palette.addEventListener("input", (event) => { if (event.target === field()) narrow(); });
  palette.addEventListener("close", () => opener?.focus());
  palette.addEventListener("click", (event) => { if (event.target === palette) palette.close(); });
  palette.addEventListener("keydown", (event) => {
    if (event.target !== field()) return;
    const options = shown(), at = options.findIndex((one) => one.getAttribute("aria-selected") === "true");
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && options.length) {
      event.preventDefault();
      choose(options[(at + step + options.length) % options.length]);
    } else if (event.key === "Enter" && options[at]) {
      event.preventDefault();
      options[at].click();
    }
  });

  document.addEventListener("keydown", (event) => {
    const command = event.metaKey || event.ctrlKey, key = event.key.toLowerCase();
    if (command && !event.altKey && !event.shiftKey && key === "k") {
      event.preventDefault();
      open();
      return;
    }
    if (command && key === "enter") {
      const form = event.target.closest?.("form");
      const button = form?.querySelector(".button--primary[type=submit]:not([disabled])");
      if (button) { event.preventDefault(); form.requestSubmit(button); }
      return;
    }
    const types = event.target.closest?.("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]");
    if (command || event.altKey || types || lettersAreOff() || document.querySelector("dialog[open]")) return;
    if (Date.now() - going < 1500) {
      going = 0;
      const link = document.querySelector(`[data-go="${CSS.escape(key)}"]`);
      if (link) { event.preventDefault(); link.click(); }
    } else if (key === "g") going = Date.now();
    else if (key === "c") document.querySelector("[data-go=p]")?.click();
    else if (event.key === "?") open();
    else if (event.key === "/") {
      event.preventDefault();
      const search = document.querySelector("[data-search]");
      if (search) search.focus();
      else open();
    }
  });
  document.addEventListener("click", (event) => { if (event.target.closest("[data-palette]")) { event.preventDefault(); open(); } });
})();
