// Verifies a receipt in the browser with Web Crypto. Only the public keys are fetched; the receipt is sent nowhere.
"use strict";

(() => {
  const KEYS = "/api/v1/receipt-keys";
  const FORMAT = "rensei-receipt-1";
  const verdict = document.querySelector("[data-receipt-verdict]");
  const button = document.querySelector("[data-receipt-verify]");
  const other = document.querySelector("[data-receipt-other]");

  // What is signed: sorted names, no spaces, UTF-8.
  function canonical(value) {
    if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
    if (value === null || typeof value !== "object") return JSON.stringify(value);
    const members = Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
    return `{${members.join(",")}}`;
  }

  function decoded(text) {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
  }

  async function verify(text) {
    const { signature, ...said } = JSON.parse(text);
    if (said.format !== FORMAT || said.alg !== "EdDSA") throw new Error("Its format is not known.");
    const { keys } = await (await fetch(KEYS)).json();
    const key = keys.find((one) => one.kid === said.kid);
    if (!key) throw new Error("No key of this server signed it.");
    const { kty, crv, x } = key;
    const publicKey = await crypto.subtle.importKey("jwk", { kty, crv, x }, { name: "Ed25519" }, false, ["verify"]);
    const message = new TextEncoder().encode(canonical(said));
    if (!(await crypto.subtle.verify({ name: "Ed25519" }, publicKey, decoded(signature), message)))
      throw new Error("Its signature does not belong to what it says.");
    return said.receipt.run.id;
  }

  async function show(text) {
    let kind = "ok";
    let sentence;
    try {
      sentence = `Genuine: this server signed exactly this receipt of ${await verify(text)}.`;
    } catch (fault) {
      kind = "bad";
      sentence =
        fault instanceof DOMException && fault.name === "NotSupportedError"
          ? "This browser does not know Ed25519. Use rensei receipt verify."
          : `Not genuine, or not verifiable here. ${fault.message}`;
    }
    verdict.className = `notice notice--${kind}`;
    verdict.textContent = sentence;
    verdict.hidden = false;
  }

  // Web Crypto exists only over https and on this machine.
  if (!button || !window.crypto?.subtle) return;
  button.hidden = other.hidden = false;
  button.addEventListener("click", () => show(document.querySelector("[data-receipt]").textContent));
  document.querySelector("[data-receipt-file]").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) await show(await file.text());
  });
})();
