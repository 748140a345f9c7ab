//! `decode PROGRAM < FRAMES`: prints the level and the message of each frame that a program logged.

use std::io::{Read, stdin};

use anyhow::{Context, Result, anyhow};
use defmt_decoder::{DecodeError, Table};

fn main() -> Result<()> {
    let program = std::env::args().nth(1).context("usage: decode PROGRAM < FRAMES")?;
    let table = Table::parse(&std::fs::read(program)?)?.context("the program has no section .defmt")?;
    let mut frames = Vec::new();
    stdin().read_to_end(&mut frames)?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(&frames);
    loop {
        match decoder.decode() {
            Ok(frame) => {
                let level = frame.level().map_or("?", |level| level.as_str());
                println!("{level} {}", frame.display_message());
            }
            Err(DecodeError::UnexpectedEof) => return Ok(()),
            Err(DecodeError::Malformed) => return Err(anyhow!("a frame is malformed")),
        }
    }
}
