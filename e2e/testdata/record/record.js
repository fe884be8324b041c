// node --require: each event is a line of the file RECORD before the server sees it. KEEP_ALIVE is the server's limit in ms, if any.
'use strict';
const fs = require('node:fs');

const record = fs.openSync(process.env.RECORD, 'a');
require('node:diagnostics_channel').subscribe('http.server.request.start', ({ request, server }) => {
  const { 'ce-type': type, 'ce-id': id, 'ce-attempt': attempt } = request.headers;
  fs.writeSync(record, `${type} ${id} ${attempt}\n`);
  if (process.env.KEEP_ALIVE) server.keepAliveTimeout = Number(process.env.KEEP_ALIVE);
});
