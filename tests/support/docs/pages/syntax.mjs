// Prints the errors of syntax in TypeScript files, those of their types aside.
import { readFileSync } from 'node:fs';
import ts from 'typescript';

for (const file of process.argv.slice(2)) {
  const { diagnostics } = ts.transpileModule(readFileSync(file, 'utf8'), {
    fileName: file, reportDiagnostics: true, compilerOptions: { jsx: ts.JsxEmit.ReactJSX },
  });
  for (const { messageText } of diagnostics) {
    console.log(`${file}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`);
  }
}
