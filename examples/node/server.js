// A chat backend for Node. SECRET is what WSBRIDGE_BACKEND_SECRET is there, PUSH_URL where WSBRIDGE_PUSH_LISTEN listens.
'use strict';
const crypto = require('node:crypto');
const http = require('node:http');

const secret = Buffer.from(process.env.SECRET.replace(/^whsec_/, ''), 'base64');
const pushUrl = process.env.PUSH_URL ?? 'http://127.0.0.1:8081';

function isSigned(headers, body) {
  const timestamp = headers['webhook-timestamp'];
  const mac = crypto.createHmac('sha256', secret).update(`${headers['webhook-id']}.${timestamp}.`).update(body).digest('base64');
  const expected = Buffer.from(`v1,${mac}`);
  const given = (headers['webhook-signature'] ?? '').split(' ').map((one) => Buffer.from(one)); // several while secrets are rotated
  return given.some((one) => one.length === expected.length && crypto.timingSafeEqual(one, expected))
    && Math.abs(Date.now() / 1000 - timestamp) <= 300;
}

async function realtime(request, response) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  if (!isSigned(request.headers, body)) return response.writeHead(401).end();

  switch (request.headers['ce-type']) {
    case 'wsbridge.connect': {
      const user = new URL(request.url, 'http://localhost').searchParams.get('user'); // yours comes from the session: its cookie is here
      response.setHeader('Ws-Join', 'lobby');
      if (user) response.setHeader('Ws-User', user);
      return response.end('welcome');
    }
    case 'wsbridge.message':
      if (body.subarray(0, 5).equals(Buffer.from('push '))) {
        const url = `${pushUrl}/connections/${request.headers['ce-connectionid']}`;
        await fetch(url, { method: 'POST', headers: { 'Content-Type': 'text/plain' }, body: body.subarray(5) }); // 410: the client has just left
        return response.writeHead(204).end();
      }
      response.setHeader('Content-Type', 'text/plain; charset=utf-8');
      return response.end(Buffer.concat([Buffer.from(`${request.headers['ce-userid'] ?? 'somebody'}: `), body]));
    default: // disconnect: the body says why, as JSON
      return response.writeHead(204).end();
  }
}

const server = http.createServer((request, response) => {
  realtime(request, response).catch((error) => {
    console.error(error);
    response.writeHead(500).end();
  });
});
server.listen(process.env.PORT ?? 9000, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
