// Builds the package's entry points into dist/ and the gateway's pushgate.js, and prints sizes.
//
//   node build.mjs [FILE]     FILE: where pushgate.js goes, by default ../gateway/pushgate.js

import {writeFile} from 'node:fs/promises';
import {fileURLToPath} from 'node:url';
import {gzipSync} from 'node:zlib';

import {build} from 'esbuild';
import {minify} from 'terser';

// The script with everything in it, minified and compressed with `gzip -9`. 6 KiB are the goal: this bound
// is where the script stands, so that it can only shrink.
const MOST_GZIPPED_BYTES = 6.4 * 1024;
// What browsers of 2020 know.
const TARGET = 'es2020';
const BANNER = '/*! pushgate.js, built from client/ in pushgate. SPDX-License-Identifier: Apache-2.0 */';

// Properties of our own objects, which get short names in the script. None of them is an option, part
// of the API, of a form that goes to a gateway or to another tab, or of a browser's object.
const INTERNAL = `
  above accepted afterMs alarm another answer ask atHand attempt beat begin beginAgain below channel choice
  closer connection contentMs controls covered delayAfter dueAt endOf ended enter events everOpen everyMs
  expect fail follow forget free giveOnce graceMs greeted handOver hasJoined hear heard heardForms hold holder
  holds identify ids isBehind isOpen isRepeat keep leave leaving leftMs load lookUp lose lost meet move moveOn
  moveTime newer nextToken notBefore noticed older openChannel openOrEnded openedAt overlap owner passed place
  port positions queue recall received renewTokens renewed replaceAfresh resolveOpen sayHere settle show
  silence silentTicks spentToken stopOlder stopped stopper successor successors take tell tick tokens user
  wake wasOpen wholeAt
`;

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const script = process.argv[2] ?? here('../gateway/pushgate.js');
const shared = {bundle: true, target: TARGET, charset: 'utf8', logLevel: 'warning', absWorkingDir: here('.')};

await build({
  ...shared,
  entryPoints: ['src/index.ts', 'src/react.ts', 'src/worker.ts'],
  format: 'esm',
  outdir: 'dist',
  external: ['react', 'pushgate-client'],
});
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
const minified = await build({
  ...shared,
  entryPoints: ['src/index.ts', 'src/react.ts', 'src/worker.ts'],
  format: 'esm',
  outdir: 'dist',
  external: ['react', 'pushgate-client'],
  minify: true,
  write: false,
});

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
