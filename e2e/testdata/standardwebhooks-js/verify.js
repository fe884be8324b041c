// Says of each event on stdin, a line of JSON, whether the published library verifies it with the secret: verify.js SECRET
'use strict';
const readline = require('node:readline');
const { Webhook } = require('standardwebhooks');

const webhook = new Webhook(process.argv[2]);
readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const { headers, body } = JSON.parse(line);
  try {
    webhook.verify(Buffer.from(body, 'base64'), headers, { jsonParse: false }); // most bodies are no JSON
    console.log('verified');
  } catch (error) {
    console.log(error.message);
  }
});
