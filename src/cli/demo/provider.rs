//! The demo's simulated provider: enough of an OpenAI-compatible server to answer a streamed
//! Responses request over HTTP/1.1 on this machine. It calls no model.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Between words, so that the stream can be seen to stream.
const WORD_EVERY: Duration = Duration::from_millis(40);
/// A request larger than this is no demo.
const BODY_LIMIT: usize = 64 << 20;
/// What it says.
const WORDS: &str = "Hello from the simulated provider: your request went through Tollgate, \
                     streamed back word by word, and was recorded with its price.";

/// Starts it on a free port.
pub async fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A client that goes away in the middle is no matter.
                let _ = connection(stream).await;
            });
        }
    });
    Ok(address)
}

async fn connection(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(body) = request(&mut stream).await? {
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        if asked["stream"] == json!(true) {
            answer_stream(&mut stream, &asked).await?;
        } else {
            answer_json(&mut stream, &asked).await?;
        }
    }
    Ok(())
}

/// The body of the next request; `None` when the client is done. Tollgate always sends a length.
async fn request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let text = line.trim();
        if text.is_empty() {
            break;
        }
        if let Some((name, value)) = text.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    if length > BODY_LIMIT {
        return Err(io::Error::other("too large for a demo"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// The answer as one object; `output` is filled once it is complete.
fn response(asked: &Value, complete: bool) -> Value {
    let input_tokens = asked.to_string().len() / 4;
    let output_tokens = WORDS.split_whitespace().count();
    json!({
        "id": "resp_demo",
        "object": "response",
        "created_at": chrono::Utc::now().timestamp(),
        "status": if complete { "completed" } else { "in_progress" },
        "model": asked["model"],
        "output": if complete { json!([item()]) } else { json!([]) },
        "parallel_tool_calls": true,
        "tool_choice": "auto",
        "tools": [],
        "usage": if complete {
            json!({
                "input_tokens": input_tokens,
                "input_tokens_details": { "cached_tokens": 0 },
                "output_tokens": output_tokens,
                "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": input_tokens + output_tokens,
            })
        } else {
            Value::Null
        },
    })
}

fn item() -> Value {
    json!({
        "id": "msg_demo",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{ "type": "output_text", "text": WORDS, "annotations": [] }],
    })
}

async fn answer_json(stream: &mut BufReader<TcpStream>, asked: &Value) -> io::Result<()> {
    let body = response(asked, true).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await
}

async fn answer_stream(stream: &mut BufReader<TcpStream>, asked: &Value) -> io::Result<()> {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await?;
    let mut number = 0;
    event(
        stream,
        &mut number,
        "response.created",
        json!({ "response": response(asked, false) }),
    )
    .await?;
    for word in WORDS.split_inclusive(' ') {
        let delta = json!({
            "item_id": "msg_demo", "output_index": 0, "content_index": 0, "delta": word,
        });
        event(stream, &mut number, "response.output_text.delta", delta).await?;
        tokio::time::sleep(WORD_EVERY).await;
    }
    let done = json!({ "output_index": 0, "item": item() });
    event(stream, &mut number, "response.output_item.done", done).await?;
    event(
        stream,
        &mut number,
        "response.completed",
        json!({ "response": response(asked, true) }),
    )
    .await?;
    stream.write_all(b"0\r\n\r\n").await?;
    stream.flush().await
}

async fn event(
    stream: &mut BufReader<TcpStream>,
    number: &mut u64,
    name: &str,
    mut data: Value,
) -> io::Result<()> {
    data["type"] = json!(name);
    data["sequence_number"] = json!(*number);
    *number += 1;
    let frame = format!("event: {name}\ndata: {data}\n\n");
    let chunk = format!("{:x}\r\n{frame}\r\n", frame.len());
    stream.write_all(chunk.as_bytes()).await?;
    stream.flush().await
}
