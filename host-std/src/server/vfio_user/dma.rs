//! The memory that a client lets the device access.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use blk_core::memory::MemoryError;
use blk_core::units::GuestAddr;
use rustix::io::Errno;

use super::connection::Connection;
use super::protocol::{DmaFlags, DmaMap, DmaUnmap, MAPPINGS_MAX, PAGE_BYTES, UNMAP_ALL};
use crate::memory::{self, BusErrors, MappedMemory, RemoteMemory, RemoteWindow, Window};
use crate::mutex::lock;
use crate::server::mapping;

/// The mappings, by address.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<u64, Mapping>);

#[derive(Debug)]
struct Mapping {
    size: u64,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    /// Memory that both have.
    Shared(Arc<memory::Mapping>, usize),
    /// Memory that only the client has.
    Client,
    /// Memory that the device may not both read and write: it is none to it.
    Refused,
}

impl Table {
    /// DMA_MAP.
    ///
    /// # Errors
    /// INVAL for a range that is empty, wraps or is not of whole pages, for flags that are unknown and for a file that is shorter;
    /// EXIST for one that meets another; NOSPC for one too many.
    pub(super) fn map(
        &mut self,
        map: &DmaMap,
        fds: Vec<OwnedFd>,
        errors: &Arc<BusErrors>,
    ) -> Result<(), Errno> {
        let flags = DmaFlags::from_bits(map.flags).ok_or(Errno::INVAL)?;
        let pages = [map.address, map.size].iter().all(|bytes| bytes.is_multiple_of(PAGE_BYTES));
        // The last page of all would end at 2^64.
        let end = map.address.checked_add(map.size).filter(|_| map.size != 0 && pages).ok_or(Errno::INVAL)?;
        let before = self.0.range(..end).next_back();
        if before.is_some_and(|(start, mapping)| start + mapping.size > map.address) {
            return Err(Errno::EXIST);
        }
        if self.0.len() >= MAPPINGS_MAX {
            return Err(Errno::NOSPC);
        }
        let mut fds = fds.into_iter();
        let backing = match (fds.next(), fds.next()) {
            _ if !flags.contains(DmaFlags::READ | DmaFlags::WRITE) => Backing::Refused,
            (Some(fd), None) => {
                let mapped = mapping::map(fd.into(), map.offset, map.size, errors).map_err(|why| {
                    tracing::warn!("memory that cannot be mapped: {why}");
                    Errno::INVAL
                })?;
                Backing::Shared(mapped.0, mapped.1)
            }
            (None, _) if map.offset == 0 => {
                tracing::info!(
                    address = map.address,
                    bytes = map.size,
                    "memory that the client does not share is reached by messages"
                );
                Backing::Client
            }
            _ => return Err(Errno::INVAL),
        };
        self.0.insert(map.address, Mapping { size: map.size, backing });
        Ok(())
    }

    /// DMA_UNMAP. What is in flight there has ended.
    ///
    /// # Errors
    /// NOENT if there is no such mapping.
    pub(super) fn unmap(&mut self, unmap: &DmaUnmap) -> Result<(), Errno> {
        if unmap.flags & UNMAP_ALL != 0 {
            self.0.clear();
            return Ok(());
        }
        match self.0.get(&unmap.address) {
            Some(mapping) if mapping.size == unmap.size => {
                self.0.remove(&unmap.address);
                Ok(())
            }
            _ => Err(Errno::NOENT),
        }
    }

    /// Whether some of it is the client's alone.
    pub(super) fn has_private(&self) -> bool {
        self.0.values().any(|mapping| matches!(mapping.backing, Backing::Client))
    }

    /// The guest's memory.
    pub(super) fn memory(&self, client: &Arc<Client>) -> MappedMemory {
        let (mut windows, mut remote) = (Vec::new(), Vec::new());
        for (&address, Mapping { size, backing }) in &self.0 {
            let addr = GuestAddr(address);
            match backing {
                Backing::Shared(mapping, offset) => windows.push(Window {
                    addr,
                    mapping: Arc::clone(mapping),
                    offset: *offset,
                    len: *size as usize,
                }),
                Backing::Client => {
                    let memory = Arc::clone(client) as Arc<dyn RemoteMemory>;
                    remote.push(RemoteWindow { addr, len: *size, memory });
                }
                Backing::Refused => {}
            }
        }
        MappedMemory::with_remote(windows, remote).unwrap_or_else(|error| {
            tracing::error!("no memory for the device: {error}");
            MappedMemory::default()
        })
    }
}

/// A client's connection, which the device's accesses to memory use too.
#[derive(Debug)]
pub(super) struct Client(Mutex<Connection>);

impl Client {
    pub(super) fn new(connection: Connection) -> Arc<Self> {
        Arc::new(Self(Mutex::new(connection)))
    }

    /// Not to be held while the device works.
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        lock(&self.0)
    }
}

impl RemoteMemory for Client {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        self.lock().dma_read(addr.0, into).map_err(|()| MemoryError)
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        self.lock().dma_write(addr.0, from).map_err(|()| MemoryError)
    }
}
