// Shows what has changed on a live page: the page itself is fetched again, and its parts marked data-live are exchanged.
// Everything works without this script, by links and forms.
"use strict";
(() => {
  const EVERY = 5000, LONGEST = 20000;
  document.querySelector("[data-focus]")?.focus();
  const status = document.getElementById("live-status");
  const parts = () => [...document.querySelectorAll("[data-live]")];
  if (!parts().length) return;
  const wanted = status.querySelector("input"), told = status.querySelector("span");
  status.hidden = false;
  let at = new Date();

  // Nothing moves under somebody who is in it, by keyboard or with a selection.
  const busy = () => {
    const selection = document.getSelection();
    const inside = (node) => parts().some((part) => part.contains(node));
    return document.hidden || !wanted.checked || inside(document.activeElement) ||
      (!selection.isCollapsed && inside(selection.anchorNode));
  };

  const exchange = (old, fresh) => {
    if (!fresh || fresh.innerHTML === old.innerHTML) return;
    const before = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    old.replaceChildren(...document.importNode(fresh, true).childNodes);
    [...old.querySelectorAll(".scroll")].forEach((one, k) => { one.scrollLeft = before[k] || 0; });
  };

  const look = async () => {
    try {
      if (!busy()) {
        const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(LONGEST) });
        if (!answer.ok) throw new Error(String(answer.status));
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        if (!busy()) parts().forEach((old) => exchange(old, page.getElementById(old.id)));
        at = new Date();
        told.textContent = "";
      }
    } catch {
      told.textContent = `The server does not answer. Shown as of ${at.toLocaleTimeString()}.`;
    }
    setTimeout(look, EVERY);
  };
  setTimeout(look, EVERY);
})();
