// Bundles each client as a page that imports it does; prints {name: {minified, gzipped}} in bytes.
//
//   node bundle.mjs '{"name": "source of the page", …}'

import {gzipSync} from 'node:zlib';

import {build} from 'esbuild';

const sizes = {};
for (const [name, contents] of Object.entries(JSON.parse(process.argv[2]))) {
  const {outputFiles} = await build({
    stdin: {contents, resolveDir: '.'},
    bundle: true,
    format: 'iife',
    target: 'es2020',
    minify: true,
    legalComments: 'none',
    write: false,
  });
  const [{contents: minified}] = outputFiles;
  sizes[name] = {minified: minified.length, gzipped: gzipSync(minified, {level: 9}).length};
}
console.log(JSON.stringify(sizes));
