<?php
// What a client sends comes back in capitals: WSBRIDGE_BACKEND_EVENTS=message and the URL of this script are all it needs.
echo strtoupper(file_get_contents('php://input'));
