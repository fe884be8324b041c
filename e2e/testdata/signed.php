<?php
// Believes only what wsbridge has signed: SECRET is what WSBRIDGE_BACKEND_SECRET is there.
$body = file_get_contents('php://input');
$id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
$time = (int) ($_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? 0);
$mac = hash_hmac('sha256', "$id.$time.$body", base64_decode(substr(getenv('SECRET'), strlen('whsec_'))), true);
$good = false;
foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $signature) { // several while secrets are changed
    $good = $good || hash_equals('v1,' . base64_encode($mac), $signature);
}
if (!$good || abs(time() - $time) > 300) { // an old event, sent again by somebody
    http_response_code(401);
    exit;
}
echo strtoupper($body);
