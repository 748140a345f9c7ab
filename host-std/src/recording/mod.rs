//! Recordings as files: their format, and what one says once it has been read and checked.
//!
//! [`record`](crate::record) writes them, [`replay`](crate::replay) rebuilds images from them.
//!
//! # Format, version 1
//!
//! Little-endian throughout. CRC is CRC32C (RFC 3720, 12.1, the polynomial 1EDC6F41h).
//!
//! | file header | bytes | |
//! |---|---|---|
//! | magic | 8 | `89 42 4c 4b 52 45 43 0a` |
//! | version | 2 | 1; a reader refuses others |
//! | reserved | 2 | 0 |
//! | base | 4 | the image at the start: 0 all zeroes, 1 data |
//! | sectors | 8 | its size in units of 512 bytes |
//! | hash | 16 | XXH3-128 of its contents, 0 where they are zeroes |
//! | padding | 20 | 0 |
//! | crc | 4 | of the 60 bytes before |
//!
//! Records follow, each a header and a body:
//!
//! | record header | bytes | |
//! |---|---|---|
//! | length | 4 | bytes of the body |
//! | kind | 2 | below |
//! | flags | 2 | of a submission: bit 0 FUA, bit 1 may unmap, bit 2 the data is zeroes and left out; else 0 |
//! | handle | 4 | numbered within the session; 0 for records of the whole image |
//! | body crc | 4 | of the body |
//! | sequence | 8 | the number of records before this one |
//! | crc | 4 | of the 24 bytes before |
//!
//! | kind | body | |
//! |---|---|---|
//! | 1 session | 48 | seconds since 1970 (8), process (4), 0 (4), info (32): a server begins |
//! | 2 info | 32 | what the storage is from now on: sectors (8), logical block, physical block, optimal transfer, staging, largest transfer (4 each), segments (2), cache (1: 0 write-through, 1 write-back, 2 unsafe), flags (1: read-only, rotational, FUA, ranges stable, discard) |
//! | 3 submission | 24 + data | operation (1: 0 read, 1 write, 2 write-zeroes, 3 discard, 4 flush), 0 (7), first sector (8), sectors (8), the data of a write |
//! | 4 completion | 24 | sequence of the submission (8), sector of an error or all ones (8), result (1: 0 success, 1 medium, 2 no space, 3 read-only, 4 out of range, 5 memory, 6 latched, 7 unsupported), 0 (7) |
//! | 5 withdrawal | 8 | sequence of the submission: the host was busy and took nothing |
//! | 6 fence | 0 | nothing in flight on the handle lands any more, and no completion of it comes |
//! | 7 mark | n | UTF-8 |
//! | 8 end | 0 | the server stopped in order |
//!
//! A **position** is a number of records: the image at position n is what the first n records say. A file that ends within a
//! record was cut off there: the records before it count. A checksum that is wrong, or a sequence with a gap, is damage.

mod contents;
mod event;
pub(crate) mod format;
pub(crate) mod history;
mod log;
mod log_error;

pub use contents::Contents;
pub(crate) use contents::{Summary, is_zero};
pub use event::{Data, Event, Mark, What};
pub use log::Log;
pub use log_error::LogError;
