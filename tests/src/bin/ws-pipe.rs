//! A websocket on standard input and output, one text frame a line: a client where the scenarios'
//! own process cannot be, such as in a namespace without a network.

use clap::Parser;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_tungstenite::tungstenite::Message;

#[derive(Parser)]
struct Arguments {
    url: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (mut socket, _) = tokio_tungstenite::connect_async(Arguments::parse().url).await?;
    println!("connected");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => socket.send(Message::text(line)).await?,
                None => return Ok(()),
            },
            frame = socket.next() => match frame.transpose()? {
                Some(Message::Text(text)) => println!("{text}"),
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}
