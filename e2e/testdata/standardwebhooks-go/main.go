// Says of each event on stdin, a line of JSON, whether the published library verifies it with the secret: go run . SECRET
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func main() {
	webhook, err := standardwebhooks.NewWebhook(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	events := json.NewDecoder(os.Stdin)
	for {
		var event struct {
			Headers map[string]string
			Body    []byte
		}
		if err := events.Decode(&event); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		header := http.Header{}
		for name, value := range event.Headers {
			header.Set(name, value)
		}
		if err := webhook.Verify(event.Body, header); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("verified")
		}
	}
}
