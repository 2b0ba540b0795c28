import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.WebSocket;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;

/**
 * The JDK's own client, unchanged. Usage: java Judges.java HTTP_URL JUDGE TOKEN [JUDGE TOKEN …].
 * tests/system/test_judges.py has the judges' names and the lines that they print.
 */
class Judges {
    private static final HttpClient HTTP = HttpClient.newHttpClient();
    private static final long PAUSE_MS = 300;

    interface Judge {
        void judge(String name, String url, String token) throws InterruptedException;
    }

    public static void main(String[] arguments) {
        Map<String, Judge> judges = Map.of("java-sse", Judges::sse, "java-ws", Judges::webSocket);
        for (int at = 1; at < arguments.length; at += 2) {
            String name = arguments[at];
            String token = arguments[at + 1];
            new Thread(() -> {
                try {
                    judges.get(name).judge(name, arguments[0], token);
                } catch (InterruptedException ended) {
                    Thread.currentThread().interrupt();
                }
            }).start();
        }
    }

    private static void say(String... words) {
        System.out.println(String.join(" ", words));
    }

    /** Reads an event stream by lines, and comes back with the id of the last whole event. */
    private static void sse(String name, String url, String token) throws InterruptedException {
        String lastId = "";
        while (true) {
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + "/sse"))
                    .header("Authorization", "Bearer " + token)
                    .header("Accept", "text/event-stream");
            if (!lastId.isEmpty()) {
                request.header("Last-Event-ID", lastId);
            }
            try (var lines = HTTP.send(request.build(), BodyHandlers.ofLines()).body()) {
                say(name, "open");
                Map<String, String> event = new LinkedHashMap<>();
                for (String line : (Iterable<String>) lines::iterator) {
                    if (!line.isEmpty()) {
                        String[] field = line.split(": ?", 2);
                        event.put(field[0], field[1]); // the test's data has one line
                        continue;
                    }
                    lastId = event.getOrDefault("id", lastId);
                    String type = event.getOrDefault("event", "message");
                    if (type.equals("message")) {
                        say(name, "message", event.get("data"));
                    } else if (type.equals("pushgate.gap")) {
                        say(name, "gap");
                    }
                    event.clear();
                }
            } catch (IOException | UncheckedIOException cut) {
                // it comes back
            }
            Thread.sleep(PAUSE_MS);
        }
    }

    private static void webSocket(String name, String url, String token)
            throws InterruptedException {
        Place place = new Place();
        while (true) {
            CompletableFuture<Void> ended = new CompletableFuture<>();
            try {
                HTTP.newWebSocketBuilder()
                        .header("Authorization", "Bearer " + token)
                        .subprotocols("pushgate.v1")
                        .buildAsync(URI.create(url.replaceFirst("http", "ws") + "/ws" + place.query()),
                                new Listener(name, place, ended))
                        .join();
                ended.join();
            } catch (CompletionException refused) {
                // it comes back
            }
            Thread.sleep(PAUSE_MS);
        }
    }

    /** One connection; `ended` completes with the connection. */
    private record Listener(
            String name, Place place, CompletableFuture<Void> ended, StringBuilder text)
            implements WebSocket.Listener {

        Listener(String name, Place place, CompletableFuture<Void> ended) {
            this(name, place, ended, new StringBuilder());
        }

        @Override
        public void onOpen(WebSocket socket) {
            say(name, "open");
            socket.request(1);
        }

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean isLast) {
            text.append(part);
            if (isLast) {
                take(socket, text.toString());
                text.setLength(0);
            }
            socket.request(1);
            return null;
        }

        private void take(WebSocket socket, String frame) {
            place.take(frame);
            String data = field(frame, "data");
            String control = field(frame, "control");
            if (data != null) {
                say(name, "message", data);
            } else if ("gap".equals(control)) {
                say(name, "gap");
            } else if ("reconnect".equals(control)) {
                long afterMs = Long.parseLong(field(frame, "after_ms"));
                CompletableFuture.delayedExecutor(afterMs, TimeUnit.MILLISECONDS)
                        .execute(() -> socket.sendClose(WebSocket.NORMAL_CLOSURE, ""));
            }
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            ended.complete(null);
            return null;
        }

        @Override
        public void onError(WebSocket socket, Throwable error) {
            ended.complete(null);
        }
    }

    /** How far a client has come: docs/protocol.md, "Resuming". */
    private static final class Place {
        private String asOf;
        private final Map<String, String> offsets = new LinkedHashMap<>(); // by topic and partition

        void take(String frame) {
            if ("gap".equals(field(frame, "control"))) {
                offsets.clear();
            }
            String cursor = field(frame, "cursor");
            if (cursor == null) {
                return;
            }
            String[] parts = cursor.split(",");
            asOf = parts[0];
            if (field(frame, "data") != null && parts.length > 1) {
                String position = parts[parts.length - 1];
                int dash = position.lastIndexOf('-');
                offsets.put(position.substring(0, dash), position.substring(dash + 1));
            }
        }

        String query() {
            if (asOf == null) {
                return "";
            }
            StringBuilder cursor = new StringBuilder(asOf);
            offsets.forEach((partition, offset) ->
                    cursor.append(',').append(partition).append('-').append(offset));
            return "?cursor=" + URLEncoder.encode(cursor.toString(), StandardCharsets.UTF_8);
        }
    }

    /** Returns a field of a frame: the JDK has no JSON, and the test's strings have no escapes. */
    private static String field(String frame, String name) {
        var found = Pattern.compile("\"" + name + "\": ?(?:\"([^\"]*)\"|(\\d+))").matcher(frame);
        if (!found.find()) {
            return null;
        }
        return found.group(1) == null ? found.group(2) : found.group(1);
    }
}
