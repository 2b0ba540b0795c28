// Builds the package's entry points into dist/ and the gateway's pushgate.js, and prints sizes.
//
//   node build.mjs [FILE]     FILE: where pushgate.js goes, by default ../gateway/pushgate.js

import {writeFile} from 'node:fs/promises';
import {fileURLToPath} from 'node:url';
import {gzipSync} from 'node:zlib';

import {build} from 'esbuild';
import {minify} from 'terser';

// The script with everything in it, minified and compressed with `gzip -9`.
const MOST_GZIPPED_BYTES = 6 * 1024;
// What browsers of 2020 know.
const TARGET = 'es2020';
const BANNER = '/*! pushgate client. SPDX-License-Identifier: Apache-2.0 */';

// Properties of our own objects, which get short names in the script. None of them is an option, part
// of the API, of a form that goes to a gateway or to another tab, or of a browser's object.
const INTERNAL = `
  above accepted another base beat begin below closed connection contentMs controls covered ended first give
  greeted handOver hear heard lasts leaving load lookUp move newer notBefore noticed older open opened over
  overlap owner passed peek place received renewTokens settle silence stop successor take tell tokens
`;

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const script = process.argv[2] ?? here('../gateway/pushgate.js');
const shared = {bundle: true, target: TARGET, charset: 'utf8', logLevel: 'warning', absWorkingDir: here('.')};

const modules = {
  ...shared,
  entryPoints: ['src/index.ts', 'src/react.ts', 'src/worker.ts'],
  format: 'esm',
  outdir: 'dist',
  external: ['react', 'pushgate-client'],
};

await build(modules);
const bundle = await build({
  ...shared,
  entryPoints: ['src/script.ts'],
  format: 'iife',
  // A worker's file comes from the page's own origin: with the package, not with a gateway's script.
  define: {'globalThis.SharedWorker': 'undefined'},
  minifySyntax: true,
  mangleProps: new RegExp(`^(${INTERNAL.trim().split(/\s+/).join('|')})$`),
  write: false,
});
// terser inlines functions that are called once; esbuild does not: a tenth less, compressed.
const {code} = await minify(bundle.outputFiles[0].text, {
  ecma: 2020,
  module: true, // without 'use strict': the types are checked more strictly
  compress: {
    passes: 5,
    pure_getters: true,
    unsafe_arrows: true,
    unsafe_methods: true,
    booleans_as_integers: true,
    lhs_constants: false,
    sequences: false,
  },
  format: {preamble: BANNER},
});
await writeFile(script, `${code}\n`);
const minified = await build({...modules, minify: true, write: false});

const sizes = minified.outputFiles.map(({path, contents}) => [path.split(/[/\\]/).pop(), contents]);
sizes.push(['pushgate.js', Buffer.from(code)]);
for (const [name, contents] of sizes) {
  const gzipped = gzipSync(contents, {level: 9}).length;
  console.log(`${name}: ${contents.length} bytes minified, ${gzipped} gzipped`);
  if (name === 'pushgate.js' && gzipped > MOST_GZIPPED_BYTES) {
    console.error(`pushgate.js may have ${MOST_GZIPPED_BYTES} bytes gzipped`);
    process.exitCode = 1;
  }
}
