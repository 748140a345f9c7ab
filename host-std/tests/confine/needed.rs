//! What a server's threads do: it goes on working.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::ptr;
use std::time::Duration;

use blk_core::op::{Op, Segment};
use blk_core::storage::{CacheMode, Storage as _};
use blk_core::units::{Extent, GuestAddr, Lba, StateKey, Tag};
use host_std::backend::{FileBackend, FileOptions, IoEngine, IoThread, StatePlace};
use host_std::confine::{Role, permissions, thread};
use host_std::memory::MappedMemory;
use libtest_mimic::Trial;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};
use rustix::io::{ReadWriteFlags, preadv2, pwritev2};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::attempt::{Attempt, Identity};
use crate::child::Open;

type Act = fn(&mut Open) -> io::Result<()>;

const EVERY_ROLE: &[Role] = &Role::ALL;
const WITH_CLIENTS: &[Role] = &[Role::Serve, Role::Queue];

const NEEDS: &[(&str, &[Role], Act)] = &[
    ("lives", EVERY_ROLE, lives),
    ("survives-a-panic", EVERY_ROLE, survives_a_panic),
    ("transfers", &[Role::Queue, Role::Worker, Role::Control], transfers),
    ("flushes", &[Role::Queue, Role::Flusher, Role::Serve, Role::Control], |open| open.image.sync_data()),
    ("accepts", &[Role::Serve, Role::Control], accepts),
    ("waits", &[Role::Main, Role::Serve, Role::Queue, Role::Control], waits),
    ("maps-what-it-receives", WITH_CLIENTS, maps_what_it_receives),
    ("lends-memory", WITH_CLIENTS, lends_memory),
    ("opens-the-image-again", &[Role::Control], opens_the_image_again),
    ("plugs-an-image-with-a-ring", &[Role::Control], plugs_an_image_with_a_ring),
    ("tells-its-service-manager", &[Role::Main], |open| {
        open.manager.tell("READY=1")?;
        let mut told = [0; 7];
        open.told.recv(&mut told)?;
        assert_eq!(&told, b"READY=1");
        Ok(())
    }),
    ("removes-its-socket", &[Role::Main], |_| std::fs::remove_file("socket")),
];

/// What some of them leave in the log.
const LOGGED: [(&str, &str); 2] = [("lives", "a line in the log"), ("survives-a-panic", "stack backtrace:")];

pub(crate) fn find(name: &str) -> Option<Act> {
    let aborts: [(&str, &[Role], Act); 1] = [("aborts", EVERY_ROLE, |_| std::process::abort())];
    let all = NEEDS.iter().copied().chain(aborts);
    all.into_iter().find(|(known, ..)| *known == name).map(|(_, _, act)| act)
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for identity in Identity::ALL {
        for &(name, roles, _) in NEEDS {
            let title = format!("a_server_as_{identity:?}_still_{}", name.replace('-', "_"));
            let trial = Trial::test(title.to_lowercase(), move || {
                for &role in roles {
                    let attempt = Attempt { identity, role, name: name.into() };
                    let outcome = attempt.run();
                    let log = LOGGED.iter().find(|(of, _)| *of == name).map_or("", |(_, text)| text);
                    if !outcome.is_done() || !outcome.has_logged(log) {
                        return Err(format!("{attempt}: {outcome:?}").into());
                    }
                }
                Ok(())
            });
            trials.push(trial.with_ignored_flag(identity.is_out_of_reach()));
        }
    }
    trials.push(Trial::test("an_abort_in_any_role_is_an_abort", || {
        for role in Role::ALL {
            let attempt = Attempt { identity: Identity::Same, role, name: "aborts".into() };
            let outcome = attempt.run();
            if outcome.signal() != Some(libc::SIGABRT) {
                return Err(format!("{attempt}: {outcome:?}").into());
            }
        }
        Ok(())
    }));
    trials
}

/// What the standard library does anywhere.
fn lives(_: &mut Open) -> io::Result<()> {
    eprintln!("a line in the log");
    let seeded: HashMap<u32, u32> = (0..100).map(|n| (n, n)).collect();
    assert_eq!(seeded.get(&7), Some(&7));
    // Larger than what the allocator keeps, and moved.
    let mut large = vec![1_u8; 8 << 20];
    large.extend_from_slice(&vec![2; 8 << 20]);
    drop(large);
    std::thread::sleep(Duration::from_millis(1));
    std::thread::yield_now();
    let mut seed = [0_u8; 8];
    // SAFETY: as many bytes as there are behind the pointer.
    assert_eq!(unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) }, 8);
    Ok(())
}

/// It is told, with a backtrace, and the thread ends in order.
fn survives_a_panic(_: &mut Open) -> io::Result<()> {
    std::panic::catch_unwind(|| panic!("a defect")).expect_err("it panics");
    Ok(())
}

fn transfers(open: &mut Open) -> io::Result<()> {
    let image = &open.image;
    assert_eq!(pwritev2(image, &[IoSlice::new(&[7; 512])], 4096, ReadWriteFlags::DSYNC)?, 512);
    let mut block = [0; 512];
    assert_eq!(preadv2(image, &mut [IoSliceMut::new(&mut block)], 4096, ReadWriteFlags::empty())?, 512);
    assert_eq!(block, [7; 512]);
    fallocate(image, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096)?;
    image.read_exact_at(&mut block, 4096)?;
    assert_eq!(block, [0; 512]);
    image.write_all_at(&[8; 512], 0)
}

fn accepts(open: &mut Open) -> io::Result<()> {
    let (mut client, _) = open.listener.accept()?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    open.waiting.write_all(b"hello")?;
    let mut heard = [0; 5];
    client.read_exact(&mut heard)?;
    client.shutdown(std::net::Shutdown::Both)
}

fn waits(open: &mut Open) -> io::Result<()> {
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let soon = Itimerspec { it_interval: nothing, it_value: Timespec { tv_sec: 0, tv_nsec: 1 } };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &soon)?;
    for fd in [timer.as_fd(), open.event.as_fd()] {
        epoll::add(&open.epoll, fd, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
    }
    rustix::io::write(&open.event, &1_u64.to_ne_bytes())?;
    let mut events = [MaybeUninit::uninit(); 4];
    let (ready, _) = epoll::wait(&open.epoll, &mut events, Some(&second))?;
    assert!(!ready.is_empty());
    assert_eq!(poll(&mut [PollFd::new(&open.event, PollFlags::IN)], Some(&second))?, 1);
    rustix::io::read(&open.event, &mut [0; 8])?;
    Ok(())
}

/// As SET_MEM_TABLE and DMA_MAP bring it.
fn maps_what_it_receives(open: &mut Open) -> io::Result<()> {
    let fds = [open.memory.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&open.far, &[IoSlice::new(b"m")], &mut control, SendFlags::NOSIGNAL)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&open.near, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let received: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let [memory] = received.as_slice() else { panic!("{received:?}") };
    assert_eq!(rustix::fs::fstat(memory)?.st_size, 1 << 16);
    let link = std::fs::read_link(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    assert!(link.to_string_lossy().contains("memory"), "{}", link.display());
    // SAFETY: a mapping at an address of the kernel's choice; written through a raw pointer within
    // its bounds, then unmapped.
    unsafe {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let start = mmap(ptr::null_mut(), 1 << 16, access, MapFlags::SHARED, memory, 0)?;
        start.cast::<u8>().write_volatile(9);
        munmap(start, 1 << 16)?;
    }
    let mut first = [0];
    File::from(open.memory.try_clone()?).read_exact_at(&mut first, 0)?;
    assert_eq!(first, [9]);
    Ok(())
}

/// As GET_INFLIGHT_FD asks for it.
fn lends_memory(_: &mut Open) -> io::Result<()> {
    let region = memfd_create("region", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&region, 4096)?;
    fcntl_add_seals(&region, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(())
}

/// As a resize and a drain do.
fn opens_the_image_again(open: &mut Open) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", open.image.as_raw_fd());
    let again = OpenOptions::new().read(true).write(true).open(path)?;
    again.set_len(2 << 20)?;
    assert_eq!(again.metadata()?.len(), 2 << 20);
    // It was named as one to be opened.
    OpenOptions::new().read(true).write(true).open("image").map(drop)
}

/// A hot-plug: threads that restrict themselves further, direct I/O by a ring of its own.
fn plugs_an_image_with_a_ring(_: &mut Open) -> io::Result<()> {
    permissions::open_or_make_private("plugged/new".as_ref())?.set_len(1 << 20)?;
    let options = FileOptions {
        engine: IoEngine::Ring,
        state: StatePlace::At("plugged/new.state".into()),
        ..FileOptions::new(CacheMode::WriteBack)
    };
    let backend = FileBackend::open_idle("plugged/new", &options).map_err(io::Error::other)?;
    let begin = |what| match what {
        IoThread::Worker => thread(Role::Worker),
        IoThread::Flusher => thread(Role::Flusher),
    };
    backend.start(begin).map_err(io::Error::other)?;
    let mut handle = backend.handle().map_err(io::Error::other)?;
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), 1 << 16)]).map_err(io::Error::other)?;
    let extent = Extent { start: Lba(8), sectors: 1 };
    let segment = Segment::Guest { addr: GuestAddr(0), len: 512 };
    let write = Op::Write { extent, fua: false };
    let (load, store) = (Op::LoadState { key: StateKey(1) }, Op::StoreState { key: StateKey(1) });
    let work = [
        (write, &[segment][..]),
        (Op::Flush, &[]),
        (Op::Read { extent }, &[segment]),
        (Op::Hold { extent }, &[]),
        (store, &[segment]),
        (load, &[segment]),
    ];
    for (generation, (op, segments)) in (0..).zip(work) {
        let tag = Tag { slot: 0, generation };
        let _ = handle.submit(&memory, tag, op, segments).expect("it is idle");
        let completion = loop {
            match handle.poll(&memory) {
                Some(completion) => break completion,
                None => handle.wait(None),
            };
        };
        assert_eq!(completion.result, Ok(()), "{op:?}");
    }
    let worker = || {
        thread(Role::Worker);
        File::open("image").expect_err("a worker opens nothing");
    };
    std::thread::Builder::new().name("worker".into()).spawn(worker)?.join().expect("its end");
    Ok(())
}
