//! A vfio-user client in this process: a PCI device behind a socket, without a virtual machine.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use blk_core::bus::Width;
use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
use zerocopy::{FromBytes, IntoBytes as _};

use super::error::ClientError;
use crate::memory::MappedMemory;
use crate::server::vfio_user::protocol::{
    DeviceInfo, DmaAccess, DmaFlags, DmaMap, DmaUnmap, FDS_MAX, Flags, Header, IrqFlags, IrqInfo, IrqSet,
    Kind, MESSAGE_MAX, RegionAccess, RegionInfo, command,
};

/// The region that is the configuration space.
pub const CONFIG: u32 = 7;

/// What QEMU proposes.
const CAPABILITIES: &[u8] =
    b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"pgsizes\":4096,\
                              \"max_dma_maps\":65535,\"write_multiple\":true}}\0";

/// A session with a server. The device's memory is what was mapped: shared, or kept here and handed out by messages while a
/// call waits for its answer. It closes when this is dropped.
#[derive(Debug)]
pub struct VfioUser {
    stream: UnixStream,
    timeout: Duration,
    next_id: u16,
    shared: MappedMemory,
    kept: BTreeMap<u64, Vec<u8>>,
    /// Leave the server's DMA messages without an answer: they wait.
    pub hold_dma: bool,
    /// DMA messages that wait.
    pub held: Vec<(Header, Vec<u8>)>,
    /// DMA messages that came so far.
    pub dma_messages: u64,
}

impl VfioUser {
    /// Connects to a socket, and agrees on a version.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let connected = UnixStream::connect(path);
        let stream = connected.map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let mut client = Self::new(stream, timeout)?;
        client.call(command::VERSION, &[&[0, 0, 1, 0], CAPABILITIES].concat(), &[])?;
        Ok(client)
    }

    /// A client that has not agreed on a version.
    ///
    /// # Errors
    /// [`ClientError::System`].
    pub fn new(stream: UnixStream, timeout: Duration) -> Result<Self, ClientError> {
        stream.set_read_timeout(Some(timeout)).map_err(ClientError::system("setsockopt"))?;
        stream.set_write_timeout(Some(timeout)).map_err(ClientError::system("setsockopt"))?;
        Ok(Self {
            stream,
            timeout,
            next_id: 0,
            shared: MappedMemory::default(),
            kept: BTreeMap::new(),
            hold_dma: false,
            held: Vec::new(),
            dma_messages: 0,
        })
    }

    /// The socket, for what no message says.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a command that wants an answer, and returns its identifier.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<u16, ClientError> {
        self.next_id = self.next_id.wrapping_add(1);
        self.send_message(&Header::command(self.next_id, command, body.len()), body, fds)?;
        Ok(self.next_id)
    }

    /// Sends a message as it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send_message(
        &self,
        header: &Header,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let bytes = [header.as_bytes(), body].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * FDS_MAX))];
        let mut sent = 0;
        while sent < bytes.len() {
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !fds.is_empty() {
                let _ = ancillary.push(SendAncillaryMessage::ScmRights(fds));
            }
            let slices = [IoSlice::new(&bytes[sent..])];
            match sendmsg(&self.stream, &slices, &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(more) => sent += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Err(ClientError::Gone),
            }
        }
        Ok(())
    }

    /// Sends a command, and waits for the answer to it.
    ///
    /// # Errors
    /// [`ClientError::Errno`] if the server says that it failed; others if there is no answer.
    pub fn call(
        &mut self,
        command: u16,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, ClientError> {
        let id = self.send(command, body, fds)?;
        self.answer(id)
    }

    /// Waits for the answer to a command.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn answer(&mut self, id: u16) -> Result<Vec<u8>, ClientError> {
        loop {
            let (header, body) = self.receive()?;
            match header.kind() {
                Some(Kind::Reply) if header.id != id => {
                    return Err(ClientError::Misbehaves(format!("a reply to {}, not to {id}", header.id)));
                }
                Some(Kind::Reply) if header.flags & Flags::ERROR.bits() != 0 => {
                    return Err(ClientError::Errno { command: header.command, errno: header.error });
                }
                Some(Kind::Reply) => return Ok(body),
                _ => self.dma(header, body)?,
            }
        }
    }

    fn receive(&mut self) -> Result<(Header, Vec<u8>), ClientError> {
        let mut header = Header::default();
        self.fill(header.as_mut_bytes())?;
        if !(Header::BYTES..=MESSAGE_MAX).contains(&(header.bytes as usize)) || header.kind().is_none() {
            return Err(ClientError::Misbehaves(format!("a header that makes no sense: {header:?}")));
        }
        let mut body = vec![0; header.body_bytes()];
        self.fill(&mut body)?;
        Ok((header, body))
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), ClientError> {
        use std::io::{ErrorKind, Read as _};
        (&self.stream).read_exact(into).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::NoAnswer { waited: self.timeout },
            _ => ClientError::Gone,
        })
    }

    /// Answers a DMA message, or keeps it.
    fn dma(&mut self, header: Header, body: Vec<u8>) -> Result<(), ClientError> {
        self.dma_messages += 1;
        if self.hold_dma {
            self.held.push((header, body));
            return Ok(());
        }
        let (access, data) = DmaAccess::read_from_prefix(&body)
            .map_err(|_| ClientError::Misbehaves("a short DMA message".into()))?;
        let kept = self.kept.range_mut(..=access.address).next_back().and_then(|(start, bytes)| {
            let at = usize::try_from(access.address - start).ok()?;
            bytes.get_mut(at..at.checked_add(usize::try_from(access.count).ok()?)?)
        });
        let (errno, mut reply) = (rustix::io::Errno::FAULT, access.as_bytes().to_vec());
        match (header.command, kept) {
            (command::DMA_READ, Some(bytes)) if data.is_empty() => reply.extend_from_slice(bytes),
            (command::DMA_WRITE, Some(bytes)) if data.len() == bytes.len() => bytes.copy_from_slice(data),
            (command::DMA_READ | command::DMA_WRITE, _) => {
                return self.send_message(&header.failure(errno), &[], &[]);
            }
            _ => return Err(ClientError::Misbehaves(format!("command {}", header.command))),
        }
        self.send_message(&header.reply(reply.len()), &reply, &[])
    }

    /// Answers the DMA messages that wait, and those to come.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn release_dma(&mut self) -> Result<(), ClientError> {
        self.hold_dma = false;
        for (header, body) in std::mem::take(&mut self.held) {
            self.dma(header, body)?;
        }
        Ok(())
    }

    /// Answers DMA messages until a descriptor is readable, or until the deadline. Returns whether it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn wait(&mut self, fd: BorrowedFd<'_>, timeout: Duration) -> Result<bool, ClientError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            let mut fds =
                [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&left));
            let [fd_ready, socket_ready] = fds.map(|fd| !fd.revents().is_empty());
            match ready {
                _ if fd_ready => return Ok(true),
                Ok(0) => return Ok(false),
                _ if socket_ready => {
                    let (header, body) = self.receive()?;
                    if header.kind() == Some(Kind::Reply) {
                        return Err(ClientError::Misbehaves("a reply to nothing".into()));
                    }
                    self.dma(header, body)?;
                }
                _ => {}
            }
        }
    }

    /// Shares memory, each region with its file ([`MappedMemory::shared`]).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn share(&mut self, memory: &MappedMemory) -> Result<(), ClientError> {
        for region in memory.mapping().iter() {
            let Some(file) = region.file_offset() else {
                return Err(ClientError::Misbehaves("memory without a file".into()));
            };
            let map = map(region.start_addr().0, region.len(), file.start());
            self.call(command::DMA_MAP, map.as_bytes(), &[file.file().as_fd()])?;
        }
        self.shared = memory.clone();
        Ok(())
    }

    /// Keeps memory here, and has the device ask for it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn keep(&mut self, address: u64, bytes: usize) -> Result<(), ClientError> {
        self.kept.insert(address, vec![0; bytes]);
        self.call(command::DMA_MAP, map(address, bytes as u64, 0).as_bytes(), &[])?;
        Ok(())
    }

    /// Takes memory away from the device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn unmap(&mut self, address: u64, bytes: u64) -> Result<(), ClientError> {
        self.call(command::DMA_UNMAP, unmap(address, bytes).as_bytes(), &[])?;
        self.kept.remove(&address);
        Ok(())
    }

    /// Writes memory of the device.
    ///
    /// # Panics
    /// If there is none.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        match self.kept.range_mut(..=address).next_back() {
            Some((start, kept)) if address - start < kept.len() as u64 => {
                let at = (address - start) as usize;
                kept[at..at + bytes.len()].copy_from_slice(bytes);
            }
            _ => self.shared.write(GuestAddr(address), bytes).expect("memory"),
        }
    }

    /// Reads memory of the device.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn take(&self, address: u64, count: usize) -> Vec<u8> {
        match self.kept.range(..=address).next_back() {
            Some((start, kept)) if address - start < kept.len() as u64 => {
                let at = (address - start) as usize;
                kept[at..at + count].to_vec()
            }
            _ => {
                let mut bytes = vec![0; count];
                self.shared.read(GuestAddr(address), &mut bytes).expect("memory");
                bytes
            }
        }
    }

    /// DEVICE_GET_INFO.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn device_info(&mut self) -> Result<DeviceInfo, ClientError> {
        let info = DeviceInfo { argsz: 16, flags: 0, regions: 0, irqs: 0 };
        parsed(&self.call(command::DEVICE_GET_INFO, info.as_bytes(), &[])?)
    }

    /// DEVICE_GET_REGION_INFO.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_info(&mut self, index: u32) -> Result<RegionInfo, ClientError> {
        let info = RegionInfo { argsz: 32, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
        parsed(&self.call(command::DEVICE_GET_REGION_INFO, info.as_bytes(), &[])?)
    }

    /// DEVICE_GET_IRQ_INFO.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo, ClientError> {
        let info = IrqInfo { argsz: 16, flags: 0, index, count: 0 };
        parsed(&self.call(command::DEVICE_GET_IRQ_INFO, info.as_bytes(), &[])?)
    }

    /// DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_irqs(
        &mut self,
        index: u32,
        flags: IrqFlags,
        range: std::ops::Range<u32>,
        data: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let (start, count) = (range.start, range.end.wrapping_sub(range.start));
        let argsz = (size_of::<IrqSet>() + data.len()) as u32;
        let set = IrqSet { argsz, flags: flags.bits(), index, start, count };
        self.call(command::DEVICE_SET_IRQS, &[set.as_bytes(), data].concat(), fds).map(drop)
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read(&mut self, region: u32, offset: u64, width: Width) -> Result<u64, ClientError> {
        let data = self.read_bytes(region, offset, width.bytes().into())?;
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(&data);
        Ok(u64::from_le_bytes(value))
    }

    /// Reads a range of a region.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read_bytes(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, ClientError> {
        let access = RegionAccess { offset, region, count };
        let reply = self.call(command::REGION_READ, access.as_bytes(), &[])?;
        match reply.split_at_checked(size_of::<RegionAccess>()) {
            Some((echo, data)) if echo == access.as_bytes() && data.len() == count as usize => {
                Ok(data.to_vec())
            }
            _ => Err(ClientError::Misbehaves(format!("{} bytes for a read of {count}", reply.len()))),
        }
    }

    /// Writes a register, and waits until the device has taken it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write(&mut self, region: u32, offset: u64, width: Width, value: u64) -> Result<(), ClientError> {
        let bytes = value.to_le_bytes();
        self.write_bytes(region, offset, &bytes[..usize::from(width.bytes())])
    }

    /// Writes a range of a region.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write_bytes(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        let reply = self.call(command::REGION_WRITE, &[access.as_bytes(), data].concat(), &[])?;
        if reply == access.as_bytes() {
            return Ok(());
        }
        Err(ClientError::Misbehaves("an answer to another write".into()))
    }

    /// Writes a register, and asks for no answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post(&mut self, region: u32, offset: u64, width: Width, value: u64) -> Result<(), ClientError> {
        let access = RegionAccess { offset, region, count: width.bytes().into() };
        let bytes = value.to_le_bytes();
        let body = [access.as_bytes(), &bytes[..usize::from(width.bytes())]].concat();
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header::command(self.next_id, command::REGION_WRITE, body.len());
        self.send_message(&Header { flags: Flags::NO_REPLY.bits(), ..header }, &body, &[])
    }

    /// Resets the device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reset(&mut self) -> Result<(), ClientError> {
        self.call(command::DEVICE_RESET, &[], &[]).map(drop)
    }
}

/// A DMA_MAP of memory that the device may read and write.
#[must_use]
pub fn map(address: u64, size: u64, offset: u64) -> DmaMap {
    let flags = (DmaFlags::READ | DmaFlags::WRITE).bits();
    DmaMap { argsz: size_of::<DmaMap>() as u32, flags, offset, address, size }
}

/// A DMA_UNMAP.
#[must_use]
pub fn unmap(address: u64, size: u64) -> DmaUnmap {
    DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, address, size }
}

fn parsed<T: FromBytes>(reply: &[u8]) -> Result<T, ClientError> {
    T::read_from_bytes(reply)
        .map_err(|_| ClientError::Misbehaves(format!("an answer of {} bytes", reply.len())))
}
