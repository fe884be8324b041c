<?php
// Looks at ce-type, so it knows who comes and goes as well.
switch ($_SERVER['HTTP_CE_TYPE'] ?? '') {
    case 'wsbridge.connect':      // before the WebSocket opens: any status but 2xx refuses it
        session_start();
        if (!isset($_SESSION['user'])) {
            http_response_code(401);
            exit('sign in first');
        }
        header('Ws-User: ' . $_SESSION['user']);
        exit('welcome');          // the first message to the client
    case 'wsbridge.message':
        exit($_SERVER['HTTP_CE_USERID'] . ' said: ' . file_get_contents('php://input'));
    case 'wsbridge.disconnect':   // exactly one for each accepted connection
        error_log('left: ' . file_get_contents('php://input'));
}
