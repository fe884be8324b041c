<?php
// The other side of index.html. wsbridge asks it, and nobody else can: see nginx/wsbridge-php.conf.
switch ($_SERVER['HTTP_CE_TYPE'] ?? '') {
    case 'wsbridge.connect':        // somebody opens the page; yours takes the name from the session, whose cookie is here
        $name = $_GET['name'] ?? '';
        if (!preg_match('/^[A-Za-z0-9_-]{1,20}$/', $name)) {
            header('Ws-Close: 4000 "a name has 1 to 20 letters and digits"');
            exit;
        }
        header("Ws-User: $name");   // comes back with every event, as HTTP_CE_USERID
        header('Ws-Join: lobby');
        exit("welcome, $name");     // to the one who comes
    case 'wsbridge.message':        // somebody says something
        header('Ws-To: /groups/lobby');
        exit("$_SERVER[HTTP_CE_USERID]: " . file_get_contents('php://input'));
    case 'wsbridge.disconnect':     // somebody has left: there is nobody to answer, so this is a push, as any script of yours may send one
        if (isset($_SERVER['HTTP_CE_USERID'])) {
            file_get_contents('http://127.0.0.1:8081/groups/lobby', false, stream_context_create(['http' => [
                'method' => 'POST', 'header' => 'Content-Type: text/plain', 'content' => "$_SERVER[HTTP_CE_USERID] has left"]]));
        }
}
