//! An ATA disk as a machine sees it: IDE channels, the PCI IDE bus master, the AHCI HBA, and the drives behind them.
//!
//! ```text
//! front/ide, front/bmdma   registers, data port, interrupts, PRD tables
//! front/ahci               registers, command lists, FISes, PRD tables, interrupts
//! front/pci_ide, pci_ahci  the same as PCI functions: identity, BARs, capabilities, bus mastering
//!   -> wire                names bytes: task file, FIS, IDENTIFY, SMART, PRD
//!   -> command             one row per opcode; decoding is pure
//!   -> drive               executes a decoded command in order, through blk_core's sequencer
//! ```
//!
//! A drive shows a write cache exactly where the storage under it has a volatile one. FLUSH CACHE, the FUA writes, queued
//! ones included, SET FEATURES 82h, STANDBY and SLEEP report success only when what they promise is stable. A reset, a port
//! that stops and a queue that ends on an error drain what was submitted before they say that they are done.
//!
//! **Goals:** a disk for firmware and drivers from ATA-1 on that keeps its promises over any storage; one table of
//! opcodes, from which commands are dispatched and IDENTIFY is made. `no_std`, no allocation, no `unsafe`, no panic
//! that a guest can reach.
//!
//! **Not goals:** timing, CD-ROMs, the power and acoustic management of real drives.
//!
//! | | |
//! |---|---|
//! | Data | READ, WRITE and READ VERIFY SECTORS, MULTIPLE, DMA, 28 and 48 bits, CHS; FUA forms; DATA SET MANAGEMENT with TRIM |
//! | Cache | FLUSH CACHE, FLUSH CACHE EXT, SET FEATURES 02h and 82h |
//! | Other commands | IDENTIFY DEVICE, SET FEATURES 03h 55h 66h AAh CCh, SET MULTIPLE MODE, INITIALIZE DEVICE PARAMETERS, READ NATIVE MAX ADDRESS, SMART, READ LOG EXT (the directory, the queued error log), power management, diagnostic, SEEK, RECALIBRATE, NOP |
//! | NCQ | READ and WRITE FPDMA QUEUED, FUA, 32 at once; log 10h; behind Serial ATA only, and shown there only |
//! | Registers | two drives on a channel, either missing; HOB, nIEN, SRST; 16- and 32-bit data port; two channels with PCI IDE bus masters |
//! | PCI | a PIIX3 or PIIX4 IDE function in native or compatibility mode, an ICH9 AHCI function, each behind `blk_core::pci::PciFunction` |
//! | AHCI 1.3.1 | up to 32 ports; 64-bit addresses; PIO, DMA and queued commands; Register, Set Device Bits, PIO Setup and DMA Setup FISes; HBA reset, COMRESET, SRST, port stop; hot plugging; INTx, one MSI message, or one of each port by MSI-X; software settings preservation |
//! | **Not there** | **NCQ NON-DATA, SEND and RECEIVE FPDMA QUEUED; port multipliers, enclosure management, command completion coalescing, link power management, device sleep; ATAPI; TCQ; standby timer; security, SET MAX, configuration overlay; SMART attributes, other logs; READ and WRITE BUFFER, DOWNLOAD MICROCODE, SANITIZE, streaming; PRD tables above 4 GiB** |

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::arithmetic_side_effects,
        clippy::panic,
        clippy::unreachable
    )
)]

#[cfg(any(test, feature = "sim"))]
extern crate std;

pub mod command;
pub mod drive;
pub mod front;
#[cfg(feature = "sim")]
pub mod sim;
pub mod wire;

pub use drive::{Drive, DriveConfig, StagingTooSmall};
pub use front::{Channel, Hba, IdeController, PciAhci, PciIde, PciIdeChip, PciIdeMode};
