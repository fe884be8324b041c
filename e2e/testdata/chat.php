<?php
// A chat. Clients connect with ?name=Ada; WSBRIDGE_BACKEND_URL is the URL of this script, which only wsbridge should reach.
session_start(); // the visitor's own session: its cookie comes with every event
$said = file_get_contents('php://input');

function tell_others($text) {
    $push = getenv('PUSH') ?: 'http://127.0.0.1:8081';
    $post = stream_context_create(['http' => ['method' => 'POST', 'header' => 'Content-Type: text/plain', 'content' => $text,
        'ignore_errors' => true]]); // 410: that one has just left
    foreach (json_decode(file_get_contents("$push/connections"))->connections as $other) {
        if ($other->id !== $_SERVER['HTTP_CE_CONNECTIONID']) {
            file_get_contents("$push/connections/$other->id", false, $post);
        }
    }
}

switch ($_SERVER['HTTP_CE_TYPE'] ?? '') {
    case 'wsbridge.connect':
        $_SESSION['name'] ??= $_GET['name'] ?? null;
        if (!$_SESSION['name']) {
            header('WWW-Authenticate: Name realm="chat"', true, 401); // no WebSocket, but this answer
            exit("Who are you?\n");
        }
        tell_others("$_SESSION[name] is here");
        exit("Welcome, $_SESSION[name]");
    case 'wsbridge.message':
        tell_others("$_SESSION[name]: $said");
        exit("You: $said");
    case 'wsbridge.disconnect':
        tell_others("$_SESSION[name] has left (" . json_decode($said)->code . ')');
}
