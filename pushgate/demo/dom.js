// Helpers of the demo page's scripts. Text from outside (messages, names, errors) is shown through
// textContent alone, and never parsed as HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, className, text) {
  const created = document.createElement(tag);
  if (className) created.className = className;
  if (text !== undefined) created.textContent = text;
  return created;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Put `item` first in a list of `most` items; the oldest make room.
export function putFirst(list, item, most) {
  list.prepend(item);
  while (list.children.length > most) list.lastElementChild.remove();
}

// Call an endpoint of the demo page. The field shows that a page of the same origin calls.
export async function call(method, path, {body, ...options} = {}) {
  const headers = {'pushgate-demo': 'page'};
  if (body !== undefined) headers['content-type'] = 'application/json';
  const response = await fetch(path, {
    method, headers, body: body === undefined ? undefined : JSON.stringify(body), ...options,
  });
  if (!response.ok) throw new Error(`${response.status} ${(await response.text()).trim()}`);
  return response.json();
}

export const clockTime = () => new Date().toLocaleTimeString();

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

export function duration(ms) {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
