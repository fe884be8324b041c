package e2e

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// The scripts that the README shows are those that are tested here and in php_test.go.
func TestTheREADMEShowsTheScriptsThatAreTested(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shout.php", "welcome.php"} {
		script, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(readme), "```php\n"+string(script)+"```\n") {
			t.Errorf("README.md does not show e2e/testdata/%s as it is: copy it there", name)
		}
	}
}

func TestTheREADMEsScriptKnowsWhoComesAndGoes(t *testing.T) {
	t.Parallel()
	php := startPHP(t)
	s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+php+"/welcome.php")
	_, answer, err := websocket.DefaultDialer.Dial("ws://"+s.clients+"/ws", nil)
	if err == nil || answer == nil || answer.StatusCode != http.StatusUnauthorized {
		t.Fatalf("handshake without a session = %v (%v), want 401", answer, err)
	}
	login, err := http.Get("http://" + php + "/login.php")
	if err != nil {
		t.Fatal(err)
	}
	login.Body.Close()
	ada := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", http.Header{"Cookie": {login.Cookies()[0].String()}})
	ada.hears(t, websocket.TextMessage, "welcome")
	ada.says(t, websocket.TextMessage, "hello")
	ada.hears(t, websocket.TextMessage, "ada said: hello")
}
