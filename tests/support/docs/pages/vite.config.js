// The two projects in one: a page each.
export default { build: { rollupOptions: { input: ['vite.html', 'react.html'] } } };
