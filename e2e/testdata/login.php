<?php
session_start();
$_SESSION['user'] = 'ada';
