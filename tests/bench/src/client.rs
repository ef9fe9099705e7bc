//! A caller with one kept connection: enough HTTP/1.1 for the host's own replies.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

/// Bytes of the longest answer that is read.
const LONGEST: usize = 64 << 20;

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            address,
        })
    }

    /// The status and the body of the answer.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(u16, Vec<u8>)> {
        self.ask_with(&[], method, path, body).await
    }

    /// The same, with headers.
    pub(crate) async fn ask_with(
        &mut self,
        headers: &[(&str, &str)],
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(u16, Vec<u8>)> {
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}content-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request).await?;
        let status = self.line().await?;
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("no answer: {status:?}"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
            chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        }
        let mut answer = Vec::new();
        if chunked {
            // A guest that was interrupted between its head and its body: its first call takes long.
            while self.chunk(&mut answer).await? {}
        } else {
            self.piece(length, &mut answer).await?;
        }
        Ok((status, answer))
    }

    /// The next chunk; false: it was the last one.
    async fn chunk(&mut self, answer: &mut Vec<u8>) -> Result<bool> {
        let size = self.line().await?;
        let size =
            usize::from_str_radix(&size, 16).with_context(|| format!("no size: {size:?}"))?;
        self.piece(size, answer).await?;
        let end = self.line().await?;
        ensure!(end.is_empty(), "a chunk that goes on: {end:?}");
        Ok(size > 0)
    }

    async fn piece(&mut self, size: usize, answer: &mut Vec<u8>) -> Result<()> {
        let whole = answer.len().saturating_add(size);
        ensure!(whole <= LONGEST, "an answer of {whole} bytes");
        let begun = answer.len();
        answer.resize(whole, 0);
        self.stream
            .read_exact(answer.get_mut(begun..).unwrap_or_default())
            .await?;
        Ok(())
    }

    /// The same, and it must succeed.
    pub(crate) async fn must(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let (status, answer) = self.ask(method, path, body).await?;
        if !(200..300).contains(&status) {
            bail!(
                "{method} {path}: {status} {}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(answer)
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        ensure!(!line.is_empty(), "the connection was closed");
        Ok(line.trim_end().to_owned())
    }
}
