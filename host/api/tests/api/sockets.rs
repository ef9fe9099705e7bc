//! What only shows on a real connection.

use std::sync::Arc;
use std::time::Duration;

use stepwell_api::{ApiOptions, router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::fake::{Fake, FakeGate};

async fn connect() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ApiOptions {
        gate: Arc::new(FakeGate::default()),
        component_limit: 1 << 20,
        upload_bytes: 1 << 30,
    };
    let router = router(Arc::new(Fake::default()), options);
    tokio::spawn(async move { axum::serve(listener, router).await });
    TcpStream::connect(address).await.unwrap()
}

/// Sends everything before it reads anything, as simple clients do, and answers the status line.
async fn upload(head: &str, body: &[u8]) -> String {
    let mut connection = connect().await;
    let exchange = async {
        connection.write_all(head.as_bytes()).await.unwrap();
        for part in body.chunks(1 << 16) {
            connection.write_all(part).await.unwrap();
        }
        let mut start = [0; 12];
        connection.read_exact(&mut start).await.unwrap();
        String::from_utf8(start.to_vec()).unwrap()
    };
    timeout(Duration::from_secs(30), exchange).await.unwrap()
}

fn head(token: &str, version: &str, length: usize) -> String {
    format!(
        "PUT /api/v1/namespaces/default/plugins/decode/versions/{version} HTTP/1.1\r\n\
         host: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_far_too_much_gets_to_read_the_refusal() {
    let body = vec![7; 40 << 20];
    for (token, version, answer) in [
        ("right", "1.0.0", "HTTP/1.1 413"),
        ("right", "one", "HTTP/1.1 422"),
        ("wrong", "1.0.0", "HTTP/1.1 401"),
    ] {
        let status = upload(&head(token, version, body.len()), &body).await;
        assert_eq!(status, answer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_leave_is_refused_before_sending() {
    let head =
        head("right", "1.0.0", 40 << 20).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(upload(&head, b"").await, "HTTP/1.1 413");
}

/// Sends this, and answers all that comes until the server closes the connection; none: it stays open.
async fn until_closed(sent: &[u8]) -> (String, bool) {
    let mut connection = connect().await;
    connection.write_all(sent).await.unwrap();
    let mut answer = Vec::new();
    let read = connection.read_to_end(&mut answer);
    let closed = timeout(Duration::from_secs(1), read).await.is_ok();
    (String::from_utf8_lossy(&answer).into_owned(), closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_body_stays_unread_the_response_says_that_the_connection_ends() {
    let next = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let waits = |token| {
        let head = head(token, "1.0.0", next.len());
        head.replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n")
    };
    // What it sends all the same is not taken for a request.
    let (answer, closed) = until_closed(format!("{}{next}", waits("wrong")).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(
        closed && answer.matches("HTTP/1.1").count() == 1,
        "{answer}"
    );
    // A body without a length that is read, and stored, leaves the connection as it is.
    let chunked =
        head("right", "1.0.0", 0).replace("content-length: 0", "transfer-encoding: chunked");
    let whole = format!("{chunked}5\r\n\0asm1\r\n0\r\n\r\n{next}");
    let (answer, closed) = until_closed(whole.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    assert!(!closed && answer.contains("HTTP/1.1 200"), "{answer}");
    // One that is refused and read goes on too.
    let whole = format!("{}{next}{next}", head("wrong", "1.0.0", next.len()));
    let (answer, closed) = until_closed(whole.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    assert!(!closed && answer.contains("HTTP/1.1 200"), "{answer}");
}
