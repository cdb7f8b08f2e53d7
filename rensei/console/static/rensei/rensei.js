// What htmx does not do by itself. Every page works without this file; with it, pages are pleasant.
(() => {
  "use strict";
  const root = document.documentElement;
  root.dataset.js = "";

  // The theme changes at once; the cookie makes the next page come in it from the first byte.
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("[data-theme-form]");
    if (!form || !event.submitter) return;
    event.preventDefault();
    const theme = event.submitter.value;
    root.dataset.theme = theme;
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `theme=${theme}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
    for (const button of form.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.value === theme));
    }
    form.closest("details")?.removeAttribute("open");
  });

  document.addEventListener("click", async (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      const source = copy.dataset.copy ? copy.dataset.copy : copy.parentElement.querySelector("code").textContent;
      await navigator.clipboard.writeText(source);
      const status = copy.querySelector("[data-copy-status]");
      copy.classList.add("badge--ok");
      status.textContent = "Copied";
      setTimeout(() => { status.textContent = copy.dataset.copyLabel; copy.classList.remove("badge--ok"); }, 1600);
    }
    if (event.target.closest("[data-close-dialog]")) {
      const dialog = event.target.closest("dialog");
      if (dialog) { event.preventDefault(); dialog.close(); }
    }
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.removeAttribute("open");
    }
  });

  // Tabs: arrows move between them, and the one that was chosen last is open on the next page too.
  function openTab(tab) {
    const tabs = tab.closest("[data-tabs]");
    for (const one of tabs.querySelectorAll("[role=tab]")) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
      document.getElementById(one.getAttribute("aria-controls")).classList.toggle("tabs__panel--open", chosen);
    }
    localStorage.setItem(`tab-${tabs.dataset.tabs}`, tab.id);
  }
  function reopenTabs(scope) {
    for (const tabs of scope.querySelectorAll("[data-tabs]")) {
      const last = document.getElementById(localStorage.getItem(`tab-${tabs.dataset.tabs}`));
      if (last && tabs.contains(last)) openTab(last);
    }
  }
  document.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) openTab(tab);
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (!tab) return;
    const all = [...tab.parentElement.children];
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -all.indexOf(tab), End: all.length - 1 - all.indexOf(tab) }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = all[(all.indexOf(tab) + step + all.length) % all.length];
    openTab(next);
    next.focus();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      menu.removeAttribute("open");
      menu.querySelector("summary").focus();
    }
  });

  // A choice counts at once. Keys pass other choices on their way: theirs counts with Enter, or when the field is left.
  let keyed = null, waiting = null;
  document.addEventListener("pointerdown", () => { keyed = null; });
  document.addEventListener("keydown", (event) => {
    keyed = event.key === "Enter" ? null : event.target;
    if (event.key !== "Enter" || event.target !== waiting) return;
    event.preventDefault();
    waiting.form.requestSubmit();
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-submit-on-change]")) return;
    if (event.target === keyed) waiting = keyed;
    else event.target.form.requestSubmit();
  });
  document.addEventListener("focusout", (event) => { if (event.target === waiting) waiting.form.requestSubmit(); });
  document.addEventListener("submit", () => { waiting = null; });

  // An id is proposed from the name as it is typed, until it was edited. `proposed_slug` makes the same on the server.
  function proposedId(name, field) {
    const { idPrefix, idSeparator, idFallback } = field.dataset;
    const words = name.normalize("NFKD").toLowerCase().replace(/\p{M}/gu, "").match(/[a-z0-9]+/g) || [];
    const longest = field.maxLength - idPrefix.length;
    return idPrefix + (words.join(idSeparator).slice(0, longest).replace(/[-_]+$/, "") || idFallback);
  }
  document.addEventListener("input", ({ target }) => {
    for (const field of target.form?.querySelectorAll(`[data-id-of="${CSS.escape(target.name)}"]`) || []) {
      const before = proposedId(target.dataset.before ?? target.defaultValue, field);
      if (!field.value || field.value === before) field.value = proposedId(target.value, field);
      target.dataset.before = target.value;
    }
  });

  // A list that narrows as one types. Without JavaScript the field's form asks the server.
  document.addEventListener("input", (event) => {
    const list = event.target.dataset.filter && document.querySelector(event.target.dataset.filter);
    if (!list) return;
    const wanted = event.target.value.trim().toLowerCase();
    let shown = 0;
    for (const item of list.children) {
      item.hidden = !item.textContent.toLowerCase().includes(wanted);
      if (!item.hidden) shown += 1;
    }
    const none = document.querySelector(`${event.target.dataset.filter}-none`);
    if (none) none.hidden = shown > 0;
  });

  // A long choice that narrows as one types. The chosen option stays.
  document.addEventListener("input", (event) => {
    const select = event.target.dataset.filterOptions && document.querySelector(event.target.dataset.filterOptions);
    if (!select) return;
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const option of select.options) {
      const text = option.textContent.toLowerCase();
      option.hidden = !option.selected && !words.every((word) => text.includes(word));
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.dataset.filterOptions) event.preventDefault();
  });

  // Times are written in UTC by the server, and read in the viewer's own zone.
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  function localise(scope) {
    for (const element of scope.querySelectorAll("time[data-time]")) {
      const moment = new Date(element.dateTime);
      const whole = moment.toLocaleString([], { dateStyle: "medium", timeStyle: "long" });
      element.title = whole;
      if (element.dataset.time === "clock") {
        element.textContent = moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", timeZoneName: "short" });
      } else if (element.dataset.time === "full") {
        element.textContent = moment.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
      } else {
        const seconds = (moment - Date.now()) / 1000;
        const unit = units.find(([, size]) => Math.abs(seconds) >= size);
        if (Math.abs(seconds) > 7 * 86400) element.textContent = moment.toLocaleDateString([], { dateStyle: "medium" });
        else element.textContent = unit ? relative.format(Math.round(seconds / unit[1]), unit[0]) : "just now";
      }
    }
  }

  // What has not ended yet goes on counting. Each element counts from the moment in which it came.
  const cameAt = new WeakMap();
  function duration(seconds) {
    if (seconds < 120) return `${seconds} s`;
    const minutes = Math.floor(seconds / 60);
    return minutes < 120 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }
  setInterval(() => {
    for (const element of document.querySelectorAll("[data-elapsed]")) {
      if (!cameAt.has(element)) cameAt.set(element, performance.now());
      const since = Math.floor((performance.now() - cameAt.get(element)) / 1000);
      element.textContent = duration(Number(element.dataset.elapsed) + since);
    }
  }, 500);

  // Images by drop and paste go into the same file field that a form without JavaScript uses.
  function addImages(zone, files) {
    const field = zone.querySelector("input[type=file]");
    const all = new DataTransfer();
    for (const file of [...field.files, ...files]) if (file.type.startsWith("image/")) all.items.add(file);
    field.files = all.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  }
  function showImages(zone) {
    const thumbs = zone.querySelector("[data-thumbs]");
    for (const image of thumbs.children) URL.revokeObjectURL(image.src);
    thumbs.replaceChildren(...[...zone.querySelector("input[type=file]").files].map((file) => {
      const image = document.createElement("img");
      image.className = "thumb";
      image.alt = file.name;
      image.src = URL.createObjectURL(file);
      return image;
    }));
  }
  for (const zone of document.querySelectorAll("[data-dropzone]")) {
    zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("dropzone--over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("dropzone--over"));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("dropzone--over");
      addImages(zone, event.dataTransfer.files);
    });
    zone.addEventListener("change", () => showImages(zone));
    zone.closest("form").addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) { event.preventDefault(); addImages(zone, event.clipboardData.files); }
    });
  }

  // A confirmation that arrives in the dialog opens it; elsewhere it is a page of its own.
  document.body.addEventListener("htmx:afterSwap", (event) => {
    const dialog = event.detail.target.closest("dialog");
    if (dialog && !dialog.open) dialog.showModal();
  });
  document.body.addEventListener("htmx:load", (event) => {
    localise(event.detail.elt);
    reopenTabs(event.detail.elt);
  });
  // A refusal comes with its own status. It is a part of the page like any other answer, or a notice above the page; an
  // answer that is no HTML, or none at all, changes no part.
  const pageNotice = document.getElementById("page-notice");
  function showNotice(title, detail, kind = "bad") {
    if (!pageNotice) return;
    const notice = document.createElement("div"), body = document.createElement("div");
    const heading = document.createElement("p"), text = document.createElement("p");
    notice.className = `notice notice--${kind}`;
    notice.role = "alert";
    body.className = "notice__body";
    heading.className = "notice__title";
    heading.textContent = title;
    text.textContent = detail;
    body.append(heading, text);
    notice.append(body);
    pageNotice.replaceChildren(notice);
  }
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    const xhr = event.detail.xhr;
    if (xhr.status < 400) { if (pageNotice) pageNotice.replaceChildren(); return; }
    const isHtml = (xhr.getResponseHeader("Content-Type") || "").startsWith("text/html");
    event.detail.shouldSwap = isHtml && (xhr.status < 500 || xhr.getResponseHeader("HX-Retarget") !== null);
    if (!event.detail.shouldSwap) showNotice("Something went wrong", "Nothing was changed. Try again in a moment.");
  });
  document.body.addEventListener("htmx:sendError", () => {
    showNotice("The server does not answer", "What you typed is still here. Try again in a moment.");
  });

  // A person whose session has ended signs in again and finds what they had typed: the fields of the form that was sent
  // last are kept in this tab until the next page. Passwords and keys never are, and no other person sees them.
  const DRAFT = "draft", NOT_KEPT = ["password", "hidden", "file", "submit"];
  const here = location.pathname + location.search, person = root.dataset.person;
  function keepDraft(form) {
    if (!person || form.method !== "post" || form.matches("[data-theme-form]")) return;
    const fields = [...form.elements].filter((field) => field.name && !NOT_KEPT.includes(field.type));
    const values = fields.map((field) => [field.name, field.value, field.checked ?? null]);
    try { sessionStorage.setItem(DRAFT, JSON.stringify({ here, person, values })); } catch { /* It is too large. */ }
  }
  function takeDraft() {
    const kept = JSON.parse(sessionStorage.getItem(DRAFT) || "null");
    if (!kept) return;
    if (location.pathname.startsWith("/accounts/")) {
      sessionStorage.setItem(DRAFT, JSON.stringify({ ...kept, interrupted: true }));
      return;
    }
    sessionStorage.removeItem(DRAFT);
    if (!kept.interrupted || kept.here !== here || kept.person !== person) return;
    const changed = new Set();
    for (const [name, value, checked] of kept.values) {
      const fields = [...document.getElementsByName(name)].filter((one) => one.form && !NOT_KEPT.includes(one.type));
      const field = checked === null || fields.length < 2 ? fields[0] : fields.find((one) => one.value === value);
      if (!field) continue;
      if (field.type === "checkbox" || field.type === "radio") field.checked = checked;
      else field.value = value;
      changed.add(field.form);
    }
    for (const form of changed) form.dispatchEvent(new Event("change", { bubbles: true }));
    if (changed.size) showNotice("You are signed in again", "What you had typed is back. Nothing was sent.", "ok");
  }
  document.addEventListener("submit", (event) => { if (!event.defaultPrevented) keepDraft(event.target); });
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    const form = event.detail.elt.closest("form");
    if (form) keepDraft(form);
  });
  takeDraft();
  localise(document);
  reopenTabs(document);
})();
