//! A guest of an AHCI controller. When its server is gone it is a new machine, with requests to make once more.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use blk_core::bus::Width;
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;
use host_std::server::vfio_user::protocol::IrqFlags;
use rustix::event::{EventfdFlags, eventfd};

use super::{BLOCK, CONFIG, Guest, Id, Outcome, Request, SECTORS_PER_BLOCK, Trouble, VfioUser, contents};

const ABAR: u32 = 5;
const GHC: u64 = 0x04;
const HOST_IS: u64 = 0x08;
const CLB: u64 = 0x100;
const FB: u64 = 0x108;
const IS: u64 = 0x110;
const IE: u64 = 0x114;
const CMD: u64 = 0x118;
const TFD: u64 = 0x120;
const SERR: u64 = 0x130;
const SACT: u64 = 0x134;
const CI: u64 = 0x138;

/// PxIS: TFES, HBFS, HBDS, IFS, with each of which the port stops (AHCI 1.3.1, 6.1.2).
const FATAL: u32 = 0xf << 27;
const MSI: u32 = 1;

// Where the command list, the received FISes, the tables and the data are.
const LIST: u64 = 0;
const RECEIVED: u64 = 0x400;
const TABLES: u64 = 0x800;
const DATA: u64 = 0x1_0000;
const MEMORY_BYTES: usize = 1 << 20;
const SLOTS: u8 = 32;

// ACS-3: the commands.
const WRITE_FPDMA_QUEUED: u8 = 0x61;
const READ_FPDMA_QUEUED: u8 = 0x60;
const FLUSH_CACHE_EXT: u8 = 0xea;
const SET_FEATURES: u8 = 0xef;
const DISABLE_WRITE_CACHE: u16 = 0x82;

pub(crate) struct AhciGuest {
    socket: PathBuf,
    limit: Duration,
    port: Option<Port>,
    ended: VecDeque<(Id, Outcome)>,
    next: Id,
}

struct Port {
    client: VfioUser,
    irq: OwnedFd,
    in_flight: BTreeMap<u8, InFlight>,
    /// The device was reset after an error.
    reset: bool,
}

#[derive(Clone, Copy)]
struct InFlight {
    id: Id,
    queued: bool,
    read: bool,
}

/// A command's fields.
#[derive(Default)]
struct Command {
    opcode: u8,
    features: u16,
    device: u8,
    lba: u64,
    count: u16,
    write: bool,
    bytes: usize,
}

impl AhciGuest {
    pub(crate) fn new(socket: PathBuf, limit: Duration) -> Self {
        Self { socket, limit, port: None, ended: VecDeque::new(), next: 0 }
    }

    fn port(&mut self) -> Result<&mut Port, Trouble> {
        self.port.as_mut().ok_or_else(|| Trouble::Lost("not connected".into()))
    }
}

impl Guest for AhciGuest {
    fn connect(&mut self) -> Result<bool, Trouble> {
        self.leave();
        self.port = Some(Port::connect(&self.socket, self.limit)?);
        Ok(false)
    }

    fn leave(&mut self) {
        self.port = None;
        self.ended.clear();
    }

    fn submit(&mut self, request: &Request) -> Result<Id, Trouble> {
        self.next += 1;
        let id = self.next;
        if matches!(request, Request::Zero { .. } | Request::Exchange { .. }) {
            return Err(Trouble::Wrong("ATA has no such command".into()));
        }
        self.port()?.submit(id, request)?;
        Ok(id)
    }

    fn wait(&mut self) -> Result<(Id, Outcome), Trouble> {
        loop {
            if let Some(ended) = self.ended.pop_front() {
                return Ok(ended);
            }
            let limit = self.limit;
            let ended = self.port()?.wait(limit)?;
            self.ended.extend(ended);
        }
    }

    fn take_reset(&mut self) -> bool {
        self.port.as_mut().is_some_and(|port| std::mem::take(&mut port.reset))
    }

    fn nothing_more(&mut self) -> Result<(), Trouble> {
        let port = self.port()?;
        let busy = port.get(CI)? | port.get(SACT)?;
        if busy != 0 {
            return Err(Trouble::Wrong(format!("slots {busy:#x} are busy, and nothing was issued there")));
        }
        Ok(())
    }
}

impl Port {
    fn connect(socket: &std::path::Path, limit: Duration) -> Result<Self, Trouble> {
        let mut client = VfioUser::connect(socket, limit)?;
        let memory = MappedMemory::shared(&[(GuestAddr(0), MEMORY_BYTES)]);
        client.share(&memory.map_err(|error| Trouble::Wrong(error.to_string()))?)?;
        let irq = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let irq = irq.map_err(|errno| Trouble::Wrong(format!("eventfd: {errno}")))?;
        let mut port = Self { client, irq, in_flight: BTreeMap::new(), reset: false };
        port.start(limit)?;
        Ok(port)
    }

    /// As a driver does after a reset.
    fn start(&mut self, limit: Duration) -> Result<(), Trouble> {
        let client = &mut self.client;
        // Memory and bus mastering.
        client.write(CONFIG, 4, Width::Word, 6)?;
        // MSI is on (PCI 3.0, 6.8.1.3).
        let mut at = client.read(CONFIG, 0x34, Width::Byte)?;
        while client.read(CONFIG, at, Width::Byte)? != 5 {
            at = client.read(CONFIG, at + 1, Width::Byte)?;
        }
        client.write(CONFIG, at + 2, Width::Word, 1)?;
        let signal = IrqFlags::EVENTFD | IrqFlags::TRIGGER;
        client.set_irqs(MSI, signal, 0..1, &[], &[self.irq.as_fd()])?;
        // AE and IE. What the link has to say of its coming up would stay pending.
        let registers = [
            (GHC, 0x8000_0002),
            (CLB, LIST as u32),
            (FB, RECEIVED as u32),
            (SERR, u32::MAX),
            (IE, u32::MAX),
            (CMD, 0x10),
            (CMD, 0x11),
        ];
        for (register, value) in registers {
            self.set(register, value)?;
        }
        // The drive sends its signature.
        if self.get(TFD)? & 0x88 != 0 {
            self.sleep(limit)?;
        }
        self.acknowledge().map(drop)
    }

    fn get(&mut self, register: u64) -> Result<u32, Trouble> {
        Ok(self.client.read(ABAR, register, Width::Dword)? as u32)
    }

    fn set(&mut self, register: u64, value: u32) -> Result<(), Trouble> {
        Ok(self.client.write(ABAR, register, Width::Dword, value.into())?)
    }

    /// Waits for an interrupt.
    fn sleep(&mut self, limit: Duration) -> Result<(), Trouble> {
        if self.client.wait(self.irq.as_fd(), limit)? {
            let _ = rustix::io::read(&self.irq, &mut [0; 8]);
            return Ok(());
        }
        let busy = self.get(CI)? | self.get(SACT)?;
        Err(Trouble::Late(format!("no interrupt within {limit:?}; slots {busy:#x} are busy")))
    }

    /// Clears what is pending, and returns what of it was the port's.
    fn acknowledge(&mut self) -> Result<u32, Trouble> {
        let pending = self.get(IS)?;
        self.set(IS, pending)?;
        self.set(HOST_IS, 1)?;
        Ok(pending)
    }

    fn submit(&mut self, id: Id, request: &Request) -> Result<(), Trouble> {
        let free = (0..SLOTS).find(|slot| !self.in_flight.contains_key(slot));
        let slot = free.ok_or_else(|| Trouble::Wrong("no slot is free".into()))?;
        let at = DATA + u64::from(slot) * BLOCK as u64;
        let lba = |block: u64| block * SECTORS_PER_BLOCK;
        let sectors = SECTORS_PER_BLOCK as u16;
        let (command, queued) = match *request {
            Request::Write { block, version, fua } => {
                self.client.put(at, &contents(block, version));
                // A queued command has its tag in the count, and its count in the features.
                let command = Command {
                    opcode: WRITE_FPDMA_QUEUED,
                    features: sectors,
                    device: 0x40 | u8::from(fua) << 7,
                    lba: lba(block),
                    count: u16::from(slot) << 3,
                    write: true,
                    bytes: BLOCK,
                };
                (command, true)
            }
            Request::Read { block } => {
                self.client.put(at, &[0xee; BLOCK]);
                let command = Command {
                    opcode: READ_FPDMA_QUEUED,
                    features: sectors,
                    device: 0x40,
                    lba: lba(block),
                    count: u16::from(slot) << 3,
                    bytes: BLOCK,
                    ..Command::default()
                };
                (command, true)
            }
            Request::CacheOff => {
                let features = DISABLE_WRITE_CACHE;
                (Command { opcode: SET_FEATURES, features, ..Command::default() }, false)
            }
            Request::Flush | Request::Zero { .. } | Request::Exchange { .. } => {
                (Command { opcode: FLUSH_CACHE_EXT, ..Command::default() }, false)
            }
        };
        self.prepare(slot, &command, at);
        let read = matches!(request, Request::Read { .. });
        self.in_flight.insert(slot, InFlight { id, queued, read });
        if queued {
            self.set(SACT, 1 << slot)?;
        }
        self.set(CI, 1 << slot)
    }

    fn prepare(&mut self, slot: u8, command: &Command, at: u64) {
        let Command { opcode, features, device, lba, count, write, bytes } = *command;
        let [l0, l1, l2, l3, l4, l5, ..] = lba.to_le_bytes();
        let ([f0, f1], [c0, c1]) = (features.to_le_bytes(), count.to_le_bytes());
        let fis = [0x27, 0x80, opcode, f0, l0, l1, l2, device, l3, l4, l5, f1, c0, c1, 0, 0, 0, 0, 0, 0];
        let table = TABLES + u64::from(slot) * 0x100;
        let mut header = [0; 32];
        let regions = u32::from(bytes > 0);
        header[..4].copy_from_slice(&(5 | u32::from(write) << 6 | regions << 16).to_le_bytes());
        header[8..16].copy_from_slice(&table.to_le_bytes());
        self.client.put(LIST + u64::from(slot) * 32, &header);
        self.client.put(table, &fis);
        let mut region = [0; 16];
        region[..8].copy_from_slice(&at.to_le_bytes());
        region[12..].copy_from_slice(&(bytes.saturating_sub(1) as u32).to_le_bytes());
        self.client.put(table + 0x80, &region);
    }

    /// Waits until a command has ended, by interrupts alone.
    fn wait(&mut self, limit: Duration) -> Result<Vec<(Id, Outcome)>, Trouble> {
        self.sleep(limit)?;
        let pending = self.acknowledge()?;
        if pending & FATAL != 0 {
            let error = format!("task file {:#x}", self.get(TFD)?);
            return self.recover(&error, limit);
        }
        let (sact, ci) = (self.get(SACT)?, self.get(CI)?);
        let mut ended = Vec::new();
        for (&slot, command) in &self.in_flight {
            let busy = if command.queued { sact | ci } else { ci };
            if busy & 1 << slot == 0 {
                let at = DATA + u64::from(slot) * BLOCK as u64;
                let data = if command.read { self.client.take(at, BLOCK) } else { Vec::new() };
                ended.push((slot, command.id, Outcome::Done(data)));
            }
        }
        for (slot, ..) in &ended {
            self.in_flight.remove(slot);
        }
        Ok(ended.into_iter().map(|(_, id, outcome)| (id, outcome)).collect())
    }

    /// The port has stopped: everything that was issued has failed, as far as the guest is concerned.
    fn recover(&mut self, error: &str, limit: Duration) -> Result<Vec<(Id, Outcome)>, Trouble> {
        let failed = std::mem::take(&mut self.in_flight).into_values();
        let failed = failed.map(|command| (command.id, Outcome::Failed(error.to_owned()))).collect();
        self.client.reset()?;
        self.start(limit)?;
        self.reset = true;
        Ok(failed)
    }
}
