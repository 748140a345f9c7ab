//! An IDE disk over a RAM disk, driven through its ports as a BIOS would.
//!
//! `cargo run -p ata-model --example identify`

#![allow(clippy::indexing_slicing, clippy::panic, reason = "an example may stop where it goes wrong")]

use ata_model::{Channel, DriveConfig};
use blk_core::bus::{Device, Region, Width};
use blk_core::memory::CellMemory;
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;

fn main() {
    let (mut ram, mut image, mut staging) = (vec![0; 1 << 16], vec![0; 1 << 20], [0; 8192]);
    let memory = CellMemory::new(GuestAddr(0), &mut ram);
    let mut disks = [RamDisk::<1>::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut staging)];
    let mut channel = Channel::new([Some(DriveConfig::new("RAM DISK", "0001")), None]);

    let mut ports = |offset, value: Option<u8>| match value {
        Some(value) => {
            let written =
                channel.write(Region::Bar(0), offset, Width::Byte, value.into(), &memory, &mut disks[..]);
            written.irq.line(0).map_or(0, u64::from)
        }
        None => {
            let width = if offset == 0 { Width::Word } else { Width::Byte };
            channel.read(Region::Bar(0), offset, width, &memory, &mut disks[..]).value
        }
    };
    ports(6, Some(0x40));
    let interrupt = ports(7, Some(0xec));
    let status = ports(7, None);
    println!("IDENTIFY DEVICE: interrupt {interrupt}, status {status:02x}");
    let words: Vec<u64> = (0..256).map(|_| ports(0, None)).collect();

    let model: String =
        words[27..47].iter().flat_map(|&word| [(word >> 8) as u8, word as u8]).map(char::from).collect();
    println!("{}: {} sectors", model.trim_end(), words[60] | words[61] << 16);
    println!("write cache: {}", if words[85] & 1 << 5 != 0 { "on: flush what must last" } else { "none" });
}
