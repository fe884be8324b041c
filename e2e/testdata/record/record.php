<?php
// auto_prepend_file: each event is a line of the file RECORD before the script sees it.
file_put_contents(getenv('RECORD'), implode(' ', [$_SERVER['HTTP_CE_TYPE'] ?? '', $_SERVER['HTTP_CE_ID'] ?? '', $_SERVER['HTTP_CE_ATTEMPT'] ?? '']) . "\n", FILE_APPEND);
