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
