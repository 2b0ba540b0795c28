import {defineConfig} from 'vite';

export default defineConfig({
  worker: {
    format: 'es',
    // A service worker serves the folder that its file is in: beside index.html, not in assets/.
    rollupOptions: {output: {entryFileNames: '[name].js'}},
  },
});
