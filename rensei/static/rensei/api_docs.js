// Draws the REST reference. "Try it out" uses a token, or the browser's session with its CSRF token.
"use strict";

const csrfToken = () => (document.cookie.match(/(?:^|; )(?:__Host-)?csrftoken=([^;]+)/) || [])[1];

const addCsrfToken = (request) => {
  const token = csrfToken();
  if (token && request.method && request.method !== "GET") {
    request.headers["X-CSRFToken"] = token;
  }
  return request;
};

// The theme is the one that the pages are in: chosen there, or the system's own.
const theme = document.documentElement.dataset.theme;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const showTheme = () => {
  const dark = theme === "dark" || (theme !== "light" && systemIsDark.matches);
  document.documentElement.classList.toggle("dark-mode", dark);
};
showTheme();
systemIsDark.addEventListener("change", showTheme);

const element = document.getElementById("api-docs");
SwaggerUIBundle({
  url: element.dataset.schemaUrl,
  domNode: element,
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  requestInterceptor: addCsrfToken,
});
