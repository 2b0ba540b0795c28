// A reverse proxy as Node applications have it: `compression` in front of `http-proxy-middleware`.
// Usage: node proxy.js TARGET_URL; prints its port, on 127.0.0.1.
'use strict';

const http = require('http');
const compression = require('compression');
const {createProxyMiddleware} = require('http-proxy-middleware');

const compress = compression();
const proxy = createProxyMiddleware({target: process.argv[2]});
const server = http.createServer((request, response) => {
  compress(request, response, () => proxy(request, response));
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
