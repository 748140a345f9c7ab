//! A program that can panic: the proof that the others cannot is one that can fail.

#![no_std]
#![no_main]

freestanding::entry!(run);

fn run() -> u8 {
    let bytes = [0; 4];
    bytes[freestanding::machine::any(4)]
}
