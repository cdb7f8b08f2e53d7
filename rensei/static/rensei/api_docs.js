// Draws the REST reference. "Try it out" uses a token, or the browser's session with its CSRF token.
"use strict";

const csrfToken = () => (document.cookie.match(/(?:^|; )csrftoken=([^;]+)/) || [])[1];

const addCsrfToken = (request) => {
  const token = csrfToken();
  if (token && request.method && request.method !== "GET") {
    request.headers["X-CSRFToken"] = token;
  }
  return request;
};

const element = document.getElementById("api-docs");
SwaggerUIBundle({
  url: element.dataset.schemaUrl,
  domNode: element,
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  requestInterceptor: addCsrfToken,
});
