//! A driver for the first port of an AHCI controller, by messages.

use std::os::fd::{AsFd as _, OwnedFd};

use blk_core::bus::Width;
use host_std::server::vfio_user::protocol::IrqFlags;
use host_std::testing::client::ClientError;
use host_std::testing::client::vfio_user::{CONFIG, VfioUser};
use rustix::event::{EventfdFlags, eventfd};

use super::{PATIENCE, shared};

pub(crate) const ABAR: u32 = 5;
const GHC: u64 = 0x04;
const HOST_IS: u64 = 0x08;
const CLB: u64 = 0x100;
const FB: u64 = 0x108;
const IS: u64 = 0x110;
const IE: u64 = 0x114;
const CMD: u64 = 0x118;
pub(crate) const TFD: u64 = 0x120;
const SERR: u64 = 0x130;
const SACT: u64 = 0x134;
pub(crate) const CI: u64 = 0x138;

/// PxIS: TFES, HBFS, HBDS, IFS, with each of which the port stops (AHCI 1.3.1, 6.1.2).
const FATAL: u32 = 0xf << 27;

/// Where the command list, the received FISes and the tables are; data comes after.
const LIST: u64 = 0;
const RECEIVED: u64 = 0x400;
const TABLES: u64 = 0x800;
pub(crate) const DATA: u64 = 0x1_0000;

pub(crate) const INTX: u32 = 0;
pub(crate) const MSI: u32 = 1;
pub(crate) const MSIX: u32 = 2;

/// The driver: interrupts come as `interrupts` says, [`INTX`], [`MSI`] or [`MSIX`].
pub(crate) struct Ahci {
    pub(crate) client: VfioUser,
    interrupts: u32,
    pub(crate) irq: OwnedFd,
}

impl Ahci {
    /// Brings the port up, with memory that both sides map.
    pub(crate) fn new(mut client: VfioUser, interrupts: u32) -> Self {
        client.share(&shared()).unwrap();
        Self::over(client, interrupts)
    }

    /// The same with memory that is mapped already.
    pub(crate) fn over(client: VfioUser, interrupts: u32) -> Self {
        let irq = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let mut ahci = Self { client, interrupts, irq };
        ahci.start();
        ahci
    }

    /// As a driver does after a reset.
    pub(crate) fn start(&mut self) {
        let client = &mut self.client;
        // Memory and bus mastering.
        client.write(CONFIG, 4, Width::Word, 6).unwrap();
        // The identity of the capability, and its enable bit (PCI 3.0, 6.8.1.3 and 6.8.2.3).
        let capability = match self.interrupts {
            MSI => Some((0x05, 1)),
            MSIX => Some((0x11, 0x8000)),
            _ => None,
        };
        if let Some((identity, enable)) = capability {
            let mut at = client.read(CONFIG, 0x34, Width::Byte).unwrap();
            while client.read(CONFIG, at, Width::Byte).unwrap() != identity {
                at = client.read(CONFIG, at + 1, Width::Byte).unwrap();
            }
            client.write(CONFIG, at + 2, Width::Word, enable).unwrap();
        }
        let signal = IrqFlags::EVENTFD | IrqFlags::TRIGGER;
        client.set_irqs(self.interrupts, signal, 0..1, &[], &[self.irq.as_fd()]).unwrap();
        // AE and IE.
        for (register, value) in [(GHC, 0x8000_0002), (CLB, LIST as u32), (FB, RECEIVED as u32)] {
            client.write(ABAR, register, Width::Dword, value.into()).unwrap();
        }
        // What the link has to say of its coming up would stay pending.
        client.write(ABAR, SERR, Width::Dword, u32::MAX.into()).unwrap();
        client.write(ABAR, IE, Width::Dword, u32::MAX.into()).unwrap();
        client.write(ABAR, CMD, Width::Dword, 0x10).unwrap();
        client.write(ABAR, CMD, Width::Dword, 0x11).unwrap();
        // The drive has sent its signature.
        self.finish(0).unwrap();
        let _ = rustix::io::read(&self.irq, &mut [0; 8]);
    }

    pub(crate) fn get(&mut self, register: u64) -> u32 {
        self.client.read(ABAR, register, Width::Dword).unwrap() as u32
    }

    /// Issues a queued read or write of whole sectors in a slot, and does not wait.
    pub(crate) fn issue(&mut self, slot: u8, lba: u64, write: bool, addr: u64, bytes: usize) {
        let [l0, l1, l2, l3, l4, l5, ..] = lba.to_le_bytes();
        let [f0, f1] = ((bytes / 512) as u16).to_le_bytes();
        let opcode = if write { 0x61 } else { 0x60 };
        let fis = [0x27, 0x80, opcode, f0, l0, l1, l2, 0x40, l3, l4, l5, f1, slot << 3, 0, 0, 0, 0, 0, 0, 0];
        self.prepare(slot, fis, write, addr, bytes);
        self.client.post(ABAR, SACT, Width::Dword, 1 << slot).unwrap();
        self.client.post(ABAR, CI, Width::Dword, 1 << slot).unwrap();
    }

    fn prepare(&mut self, slot: u8, fis: [u8; 20], write: bool, addr: u64, bytes: usize) {
        let table = TABLES + u64::from(slot) * 0x100;
        let regions = u32::from(bytes > 0);
        let mut header = [0; 32];
        header[..4].copy_from_slice(&(5 | u32::from(write) << 6 | regions << 16).to_le_bytes());
        header[8..16].copy_from_slice(&table.to_le_bytes());
        self.client.put(LIST + u64::from(slot) * 32, &header);
        self.client.put(table, &fis);
        let mut region = [0; 16];
        region[..8].copy_from_slice(&addr.to_le_bytes());
        region[12..].copy_from_slice(&(bytes.saturating_sub(1) as u32).to_le_bytes());
        self.client.put(table + 0x80, &region);
    }

    /// Waits until the slots are done, by interrupts alone, and leaves none pending.
    pub(crate) fn finish(&mut self, slots: u32) -> Result<(), String> {
        loop {
            // In this order: what ends in between is pending.
            let busy = (self.get(SACT) | self.get(CI)) & slots;
            let pending = self.get(IS);
            self.client.write(ABAR, IS, Width::Dword, pending.into()).unwrap();
            self.client.write(ABAR, HOST_IS, Width::Dword, 1).unwrap();
            if self.interrupts == INTX {
                // As QEMU does after the guest has accessed a register.
                self.unmask();
            }
            if pending & FATAL != 0 {
                return Err(format!("task file {:#x}", self.get(TFD)));
            }
            if pending != 0 {
                continue;
            }
            if busy == 0 {
                return Ok(());
            }
            let woken = self.client.wait(self.irq.as_fd(), PATIENCE).unwrap();
            assert!(woken, "no interrupt, slots {busy:#x}");
            let _ = rustix::io::read(&self.irq, &mut [0; 8]);
        }
    }

    pub(crate) fn unmask(&mut self) {
        let flags = IrqFlags::NONE | IrqFlags::UNMASK;
        self.client.set_irqs(INTX, flags, 0..1, &[], &[]).unwrap();
    }

    pub(crate) fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), String> {
        self.client.put(DATA, data);
        self.issue(0, lba, true, DATA, data.len());
        self.finish(1)
    }

    pub(crate) fn read(&mut self, lba: u64, bytes: usize) -> Result<Vec<u8>, String> {
        self.client.put(DATA, &vec![0xee; bytes]);
        self.issue(0, lba, false, DATA, bytes);
        self.finish(1)?;
        Ok(self.client.take(DATA, bytes))
    }
}

/// The errno of what was refused.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> u32 {
    match result {
        Err(ClientError::Errno { errno, .. }) => errno,
        other => panic!("not refused: {other:?}"),
    }
}
