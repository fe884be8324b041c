<?php
// A chat backend for php -S and PHP-FPM. SECRET is what WSBRIDGE_BACKEND_SECRET is there, PUSH_URL where WSBRIDGE_PUSH_LISTEN listens.
$secret = getenv('SECRET') ?: throw new RuntimeException('SECRET is not set');
$pushUrl = getenv('PUSH_URL') ?: 'http://127.0.0.1:8081';
$body = file_get_contents('php://input');

$id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
$timestamp = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
$mac = hash_hmac('sha256', "$id.$timestamp.$body", base64_decode(substr($secret, strlen('whsec_'))), true);
$signed = false;
foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $signature) { // several while secrets are rotated
    $signed = hash_equals('v1,' . base64_encode($mac), $signature) || $signed;
}
if (!$signed || abs(time() - (int) $timestamp) > 300) { // an old event, sent again by somebody
    http_response_code(401);
    exit;
}

switch ($_SERVER['HTTP_CE_TYPE']) {
    case 'wsbridge.connect':
        header('Ws-Join: lobby');
        if (isset($_GET['user'])) { // yours comes from the session: its cookie is here
            header('Ws-User: ' . $_GET['user']);
        }
        exit('welcome');
    case 'wsbridge.message':
        if (str_starts_with($body, 'push ')) {
            file_get_contents("$pushUrl/connections/$_SERVER[HTTP_CE_CONNECTIONID]", false, stream_context_create(['http' => [
                'method' => 'POST', 'header' => 'Content-Type: text/plain', 'content' => substr($body, strlen('push ')),
                'ignore_errors' => true]])); // 410: the client has just left
            http_response_code(204);
            exit;
        }
        header('Content-Type: text/plain; charset=utf-8');
        exit(($_SERVER['HTTP_CE_USERID'] ?? 'somebody') . ": $body");
    case 'wsbridge.disconnect': // the body says why, as JSON
        http_response_code(204);
}
