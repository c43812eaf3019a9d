//! The daemon's door: connections, their requests, and when it all ends.
//!
//! One async thread does the talking; everything that computes or waits for a disk happens elsewhere (the engines'
//! threads; opening a source, on a blocking thread). A connection is one feed. It ends at end-of-file, when the
//! client's process dies (its pidfd says so even where a forked child still holds the socket), when the client breaks
//! the protocol, or when the daemon is told to stop; whatever the reason, dropping its [`Engine`] frees everything.
//!
//! A *private* daemon has its client's socket as standard input, takes further connections over it (`adopt`), writes
//! its log to its standard output, a socket too (lines about the data of one feed go to that feed, as everywhere),
//! ignores the terminal's signals, and ends when the last connection has ended. One of a *job* serves the processes of
//! a job on this node: it has a listening socket as standard input, and ends as a private one does. A standalone one
//! listens on a socket that only its own user can open (mode 0600, peer uid checked besides).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuelrail_connectors::{Opening, shown};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::Mode;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::config::{DaemonConfig, PipelineConfig};
use crate::engine::Engine;
use crate::log;
use crate::metrics::Consumer;
use crate::peer::Peer;
use crate::permission;
use crate::protocol::{
    self, Attach, Decoder, ErrorKind, MAX_KEYS, PROTOCOL, PipelineRef, Progress, Reply, Request,
};
use crate::refusal::Refusal;
use crate::sharing::{self, Party, Seat, Sharing};

/// A client that does not say hello within this time is let go.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that may not be served has this long to say hello and hear why.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections at a time; each costs a descriptor or two and a little memory before it attaches.
const MAX_CONNECTIONS: usize = 512;

/// Answers that wait for a client to read them. One that asks more than it reads is not listened to meanwhile.
const MAX_ANSWERS: usize = 16;

/// Time between two looks at an opening and at who waits for it.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// Time between two lines about it in the daemon's own log.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// A job's daemon that nobody comes to ends after this.
const GRACE: Duration = Duration::from_secs(60);

/// Lines of the log that wait for a client to read them.
const MAX_LINES: usize = 1000;

/// Whose a daemon is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// One process's: its clients are trusted, and hear all it says.
    Process,
    /// The processes' of a job on this node; likewise.
    Job,
    /// Nobody's: it serves what it was told to.
    Nobody,
}

/// State that connections share.
struct Server {
    config: DaemonConfig,
    owner: Owner,
    sharing: Sharing,
    stop: watch::Receiver<bool>,
    /// Held by every connection; the receiver sees when the last is gone.
    alive: mpsc::Sender<()>,
}

/// Runs a private daemon over the socket on standard input until its last client is gone.
///
/// # Errors
/// When standard input is not a socket.
pub fn serve_private() -> io::Result<()> {
    // Out of the trainer's process group and terminal: ctrl-C there must not end us before its last save.
    let _ = rustix::process::setsid();
    let control = rustix::io::dup(io::stdin().as_fd())?;
    log::to_client(rustix::io::dup(io::stdout().as_fd())?);
    run(DaemonConfig::default(), Door::Private(control)).map(drop)
}

/// Runs the daemon of a job's processes on this node over the listening socket on standard input, until the last of
/// them is gone. What goes wrong before that is written to standard error, from then on to what was standard output.
///
/// # Errors
/// When standard input is not a listening socket.
pub fn serve_job() -> io::Result<()> {
    // As above; and the process that started it may be killed with its group while others go on.
    let _ = rustix::process::setsid();
    let listener = std::os::unix::net::UnixListener::from(rustix::io::dup(io::stdin().as_fd())?);
    log::to_listeners();
    run(DaemonConfig::default(), Door::Job(listener)).map(drop)
}

/// Runs a standalone daemon until SIGTERM or SIGINT; which of them it was.
///
/// # Errors
/// When the socket cannot be made, for instance because another daemon listens there.
pub fn serve(config: DaemonConfig, socket: &Path) -> io::Result<Signal> {
    log::to_stderr();
    let listener = listen(socket)?;
    tracing::info!("fuelrail {} listening on {}", env!("CARGO_PKG_VERSION"), shown(&socket));
    let result = run(config, Door::Listener(listener));
    let _ = std::fs::remove_file(socket);
    tracing::info!("stopped");
    result
}

enum Door {
    Private(OwnedFd),
    Job(std::os::unix::net::UnixListener),
    Listener(std::os::unix::net::UnixListener),
}

/// Runs until the door is closed; the signal that closed it.
fn run(config: DaemonConfig, door: Door) -> io::Result<Signal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (stopper, stop) = watch::channel(false);
        let (alive, last_gone) = mpsc::channel(1);
        let owner = match door {
            Door::Private(_) => Owner::Process,
            Door::Job(_) => Owner::Job,
            Door::Listener(_) => Owner::Nobody,
        };
        let server = Arc::new(Server { config, owner, sharing: Sharing::default(), stop, alive });
        match door {
            Door::Private(control) => private_door(server, control, &stopper, last_gone).await,
            Door::Job(listener) => job_door(server, listener).await,
            Door::Listener(listener) => listening_door(server, listener, &stopper, last_gone).await,
        }
    });
    // A source that was being opened for a client that is gone was told to stop, and deletes what it has half written;
    // on a disk that hangs it is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn private_door(
    server: Arc<Server>,
    control: OwnedFd,
    stopper: &watch::Sender<bool>,
    mut last_gone: mpsc::Receiver<()>,
) -> io::Result<Signal> {
    let mut terminate = signal(SignalKind::terminate())?;
    // The terminal's own signals are ignored: the client ends us by going away.
    let _deaf = deaf()?;
    tokio::spawn(connection(StdStream::from(control), server));
    tokio::select! {
        _ = last_gone.recv() => {}
        _ = terminate.recv() => {
            let _ = stopper.send(true);
            last_gone.recv().await;
        }
    }
    // Nobody asks what ended it: its client has.
    Ok(Signal::TERM)
}

/// Signals of a terminal, and those by which schedulers tell a job to save and end: they are for the trainers, and the
/// daemon, which they reach too, ends after them.
fn deaf() -> io::Result<Vec<tokio::signal::unix::Signal>> {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    kinds.into_iter().map(signal).collect()
}

async fn job_door(server: Arc<Server>, listener: std::os::unix::net::UnixListener) -> io::Result<Signal> {
    let _deaf = (deaf()?, signal(SignalKind::terminate())?);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    // Whoever started it reads what was said until now only if it ends before its first answer.
    let _ = rustix::stdio::dup2_stderr(io::stdout().as_fd());
    let (mut open, mut was_used) = (JoinSet::new(), false);
    let grace = tokio::time::sleep(GRACE);
    tokio::pin!(grace);
    loop {
        // A client that is at the door comes before the end. One that comes after it finds a socket that is closed, and
        // starts another daemon.
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = open.join_next(), if !open.is_empty() => continue,
            () = std::future::ready(()), if was_used && open.is_empty() => break,
            () = &mut grace, if !was_used => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let stream = stream.into_std()?;
                let peer = rustix::net::sockopt::socket_peercred(&stream);
                if open.len() < MAX_CONNECTIONS
                    && peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
                {
                    was_used = true;
                    open.spawn(connection(stream, server.clone()));
                }
            }
            Err(error) => {
                tracing::warn!("no connection could be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    Ok(Signal::TERM)
}

async fn listening_door(
    server: Arc<Server>,
    listener: std::os::unix::net::UnixListener,
    stopper: &watch::Sender<bool>,
    mut last_gone: mpsc::Receiver<()>,
) -> io::Result<Signal> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let open = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stopped_by = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => break Signal::TERM,
            _ = interrupt.recv() => break Signal::INT,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = open.clone().try_acquire_owned() else {
                    tracing::warn!("a connection was refused: {MAX_CONNECTIONS} are open already");
                    continue;
                };
                let (stream, server) = (stream.into_std()?, server.clone());
                tokio::spawn(async move {
                    connection(stream, server).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those that are open go on, new ones wait.
                tracing::warn!("no connection could be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let _ = stopper.send(true);
    drop(server);
    let _ = tokio::time::timeout(Duration::from_secs(2), last_gone.recv()).await;
    Ok(stopped_by)
}

/// Binds the socket so that at no moment anyone else could open it, and takes the place of a dead daemon's socket.
fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let explain = |error: io::Error, what: &str| {
        io::Error::new(error.kind(), format!("{what} {}: {error}", shown(&path)))
    };
    if path.exists() {
        if StdStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!(
                    "another daemon is listening on {}; choose another --socket or stop that one",
                    shown(&path)
                ),
            ));
        }
        let kind = std::fs::symlink_metadata(path)?.file_type();
        if !std::os::unix::fs::FileTypeExt::is_socket(&kind) {
            return Err(io::Error::other(format!(
                "{} exists and is not a socket; it is left alone",
                shown(&path)
            )));
        }
        std::fs::remove_file(path)
            .map_err(|error| explain(error, "a dead daemon's socket cannot be removed:"))?;
    }
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // Before bind, so that the name never exists with a wider mode.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let address = rustix::net::SocketAddrUnix::new(path)
        .map_err(|error| explain(error.into(), "not a socket path:"))?;
    rustix::net::bind(&socket, &address).map_err(|error| explain(error.into(), "cannot listen on"))?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket.into())
}

/// A frame on its way to a client, with the descriptor that travels along, and its place among the answers.
type Letter = (Vec<u8>, Option<OwnedFd>, Option<OwnedSemaphorePermit>);

/// Unbounded, because nothing that says something may wait for a slow client. What lies in it is bounded by what there
/// is to say: a `ready` for each slot, the answers that [`MAX_ANSWERS`] lets wait, and a few log lines.
type Outbox = mpsc::UnboundedSender<Letter>;

fn say(outbox: &Outbox, reply: &Reply) -> bool {
    outbox.send((protocol::encode(reply), None, None)).is_ok()
}

fn answer(outbox: &Outbox, reply: &Reply, place: OwnedSemaphorePermit) -> bool {
    outbox.send((protocol::encode(reply), None, Some(place))).is_ok()
}

/// Says why to a client that may not be served, in answer to its hello: one that still sends would not listen.
async fn refuse(stream: StdStream, message: String) {
    let Ok(stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) else { return };
    if tokio::time::timeout(REFUSAL_TIMEOUT, stream.readable()).await.is_ok() {
        let refused = Reply::Refused { kind: ErrorKind::Environment, message };
        // What the socket does not take at once is not waited for.
        let _ = protocol::send_all(&stream, &refused, None);
    }
}

async fn connection(stream: StdStream, server: Arc<Server>) {
    let alive = server.alive.clone();
    let mut stop = server.stop.clone();
    let peer = match Peer::identify(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!("a connection was refused: {error}");
            return refuse(stream, error.to_string()).await;
        }
    };
    let Ok(()) = stream.set_nonblocking(true) else { return };
    let Ok(stream) = UnixStream::from_std(stream) else { return };
    let stream = Arc::new(stream);
    let (outbox, inbox) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write(stream.clone(), inbox));
    let answers = Arc::new(Semaphore::new(MAX_ANSWERS));
    let mut session = Session {
        server,
        outbox,
        answers,
        peer: peer.pid,
        seat: None,
        party: None,
        listening: None,
        greeted: false,
    };
    tokio::select! {
        result = session.run(&stream) => {
            if let Err(refusal) = result {
                // A private daemon's log goes to its client, who is told anyway.
                if session.server.owner == Owner::Nobody {
                    tracing::warn!("a connection of process {} ended: {refusal}", peer.pid.as_raw_nonzero());
                }
                say(&session.outbox, &Reply::Refused { kind: refusal.kind, message: refusal.message });
            }
        }
        () = peer.death() => {}
        _ = stop.wait_for(|&stop| stop) => {}
    }
    let Session { outbox, seat, party, listening, .. } = session;
    drop((party, listening));
    // Joining the engine's threads takes milliseconds, but not on the thread that serves everyone else.
    let _ = tokio::task::spawn_blocking(move || drop(seat)).await;
    drop(outbox);
    // What was said last (a refusal) still goes out, if the client reads it.
    let _ = tokio::time::timeout(Duration::from_millis(500), writer).await;
    drop(alive);
}

/// A connection that came over another one. Boxed: the future of a connection contains this call.
fn adopted(stream: StdStream, server: Arc<Server>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(connection(stream, server))
}

async fn write(stream: Arc<UnixStream>, mut inbox: mpsc::UnboundedReceiver<Letter>) {
    while let Some((frame, mut fd, _place)) = inbox.recv().await {
        // What was logged before it comes before it.
        log::flush();
        let mut sent = 0;
        while sent < frame.len() {
            let attempt = stream
                .async_io(Interest::WRITABLE, || {
                    protocol::send(stream.as_fd(), &frame[sent..], fd.as_ref().map(AsFd::as_fd))
                })
                .await;
            match attempt {
                Ok(bytes) => sent += bytes,
                Err(_) => return,
            }
            fd = None;
        }
    }
}

/// "64 MiB = base 64 + …", the sum first.
fn budget_text(budget: &BTreeMap<String, u64>) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let lines = budget.iter().filter(|(owner, _)| *owner != "total");
    let parts: Vec<_> = lines.map(|(owner, &bytes)| format!("{owner} {}", mib(bytes))).collect();
    format!("{} MiB = {}", mib(budget.get("total").copied().unwrap_or(0)), parts.join(" + "))
}

struct Session {
    server: Arc<Server>,
    outbox: Outbox,
    answers: Arc<Semaphore>,
    seat: Option<Seat>,
    /// Its part in what the processes of a job agree on.
    party: Option<Party>,
    /// The client's process.
    peer: Pid,
    listening: Option<log::Listening>,
    greeted: bool,
}

impl Session {
    /// Serves requests until end-of-file.
    async fn run(&mut self, stream: &UnixStream) -> Result<(), Refusal> {
        let mut decoder = Decoder::default();
        // One for the whole hello, not one for each byte of it.
        let patience = tokio::time::Instant::now() + HELLO_TIMEOUT;
        loop {
            while let Some(request) = decoder
                .message::<Request>()
                .map_err(|error| Refusal::new(ErrorKind::Protocol, error.to_string()))?
            {
                self.serve(request, stream, &mut decoder).await?;
            }
            let receive =
                stream.async_io(Interest::READABLE, || decoder.receive(stream.as_fd(), RecvFlags::DONTWAIT));
            let received = if self.greeted {
                receive.await
            } else {
                tokio::time::timeout_at(patience, receive)
                    .await
                    .map_err(|_| Refusal::new(ErrorKind::Protocol, "no hello came within 10 seconds"))?
            };
            match received {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    async fn serve(
        &mut self,
        request: Request,
        stream: &UnixStream,
        decoder: &mut Decoder,
    ) -> Result<(), Refusal> {
        let protocol = |message: &str| Err(Refusal::new(ErrorKind::Protocol, message));
        self.listening.iter().for_each(log::Listening::spoke);
        match (request, &self.seat) {
            (Request::Adopt, None) if self.server.owner == Owner::Process => {
                self.greeted = true;
                match decoder.take_fd() {
                    Some(fd) => drop(tokio::spawn(adopted(StdStream::from(fd), self.server.clone()))),
                    None => return protocol("adopt came without a socket"),
                }
            }
            (Request::Hello { protocol: theirs, .. }, None) if !self.greeted => {
                if theirs != PROTOCOL {
                    let message = format!(
                        "this daemon (version {}) speaks protocol {PROTOCOL}, the client protocol {theirs}: install the same \
                         version of fuelrail on both sides",
                        env!("CARGO_PKG_VERSION")
                    );
                    return protocol(&message);
                }
                self.greeted = true;
                let version = env!("CARGO_PKG_VERSION").to_string();
                say(&self.outbox, &Reply::Welcome { protocol: PROTOCOL, version, pid: std::process::id() });
            }
            (Request::Attach(attach), None) if self.greeted => self.attach(*attach, stream).await?,
            (Request::Seek { generation, cursor, place }, Some(seat)) => {
                seat.engine.seek(seat.consumer, generation, cursor, place);
            }
            (Request::Saved { place, position }, Some(seat)) => seat.engine.saved(place, position),
            (Request::Release { slot }, Some(seat)) => seat.engine.release(seat.consumer, slot),
            (Request::Stats { data_wait_ns, iteration_ns }, Some(seat)) => {
                let (outbox, place) = (self.outbox.clone(), self.place().await);
                seat.engine.stats(Consumer { data_wait_ns, iteration_ns }, move |stats| {
                    answer(&outbox, &Reply::Stats(Box::new(stats)), place);
                });
            }
            (Request::Keys { indices }, Some(seat)) => {
                self.keys(&indices, &seat.engine, self.place().await)?;
            }
            (request, _) => {
                let name = serde_json::to_value(&request)
                    .ok()
                    .and_then(|value| Some(value["say"].as_str()?.to_string()));
                return protocol(&format!("'{}' came out of turn", name.unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// A place for one more answer.
    async fn place(&self) -> OwnedSemaphorePermit {
        self.answers.clone().acquire_owned().await.expect("never closed")
    }

    fn keys(&self, indices: &[i64], engine: &Engine, place: OwnedSemaphorePermit) -> Result<(), Refusal> {
        let refuse = |message| Err(Refusal::new(ErrorKind::Config, message));
        if indices.len() > MAX_KEYS {
            return refuse(format!(
                "keys of {} records were requested; at most {MAX_KEYS} are given at a time",
                indices.len()
            ));
        }
        let supply = &engine.pipeline().supply;
        let mut keys = Vec::with_capacity(indices.len());
        for &index in indices {
            match supply.key(index) {
                Some(key) => keys.push(key),
                None => return refuse(format!("the source has no record {index}")),
            }
        }
        answer(&self.outbox, &Reply::Keys { keys }, place);
        Ok(())
    }

    async fn attach(&mut self, attach: Attach, stream: &UnixStream) -> Result<(), Refusal> {
        let config = self.server.resolve(attach.pipeline)?;
        let (server, outbox, peer) = (self.server.clone(), self.outbox.clone(), self.peer);
        let Attach { rank, world_size, start, member, .. } =
            Attach { pipeline: PipelineRef::Name(String::new()), ..attach };
        if server.owner == Owner::Job {
            self.listening = Some(self.listen(member.map_or(u64::MAX, |member| member.process)));
        }
        let watched = Opening::new();
        let opening = watched.clone();
        let starting = tokio::task::spawn_blocking(move || {
            // Before the source, whose opening may take long.
            let party = match &member {
                Some(member) => server.sharing.agreement.join(&config, world_size, member)?,
                None => None,
            };
            let mut pipeline = server.sharing.open(config, &opening)?;
            if server.owner != Owner::Nobody {
                sharing::alone(&pipeline, world_size, member.as_ref())?;
            }
            // One that asks for a number of threads has them for itself.
            let workers = match member.filter(|_| pipeline.config.num_workers == 0) {
                Some(member) => {
                    let here = usize::try_from(member.here).unwrap_or(usize::MAX).max(1);
                    let pool = server.sharing.cores.workers(peer, here)?;
                    (pipeline.threads, pipeline.sharers) = (pool.current_num_threads(), here);
                    Some(pool)
                }
                None => None,
            };
            let pipeline = Arc::new(pipeline);
            server.sharing.join(&pipeline, rank, world_size, member.as_ref())?;
            // What the engine says waits here until `attached` has gone out first.
            let (held, mut holding) = mpsc::unbounded_channel();
            let out = Box::new(move |reply| drop(held.send(reply)));
            let (seat, attached, memory) =
                server.sharing.feed(pipeline, rank, world_size, start, workers, out)?;
            Ok((seat, party, attached, memory, move || async move {
                while let Some(reply) = holding.recv().await {
                    if !say(&outbox, &reply) {
                        return;
                    }
                }
            }))
        });
        let started = self.watch(starting, watched, stream).await;
        let (seat, party, attached, memory, forward) = match started {
            Ok(started) => started?,
            Err(panic) => {
                return Err(Refusal::new(
                    ErrorKind::Environment,
                    format!("opening the source failed: {panic}"),
                ));
            }
        };
        tracing::info!(
            "{} {rank} of {world_size}: {}, {} worker threads, memory budget {}",
            crate::log::FEED,
            attached.batching.len.map_or("a stream".to_string(), |len| format!("{len} samples")),
            attached.threads,
            budget_text(&attached.budget)
        );
        let frame = protocol::encode(&Reply::Attached(Box::new(attached)));
        let _ = self.outbox.send((frame, Some(memory), None));
        tokio::spawn(forward());
        (self.seat, self.party) = (Some(seat), party);
        Ok(())
    }

    /// The log of a job's daemon, as this client hears it.
    fn listen(&self, process: u64) -> log::Listening {
        let (outbox, places) = (self.outbox.clone(), Arc::new(Semaphore::new(MAX_LINES)));
        log::Listening::new(process, move |frames| {
            let place = places.clone().try_acquire_owned();
            place.is_ok_and(|place| outbox.send((frames, None, Some(place))).is_ok())
        })
    }

    /// Waits for an opening, tells its client how far it has come, and cancels it when there is no client any more:
    /// nothing goes on for nobody.
    async fn watch<T>(
        &self,
        mut starting: JoinHandle<T>,
        opening: Opening,
        stream: &UnixStream,
    ) -> Result<T, JoinError> {
        let opening = CancelWhenDropped(opening);
        let mut looks = tokio::time::interval(PROGRESS_PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut logged) = (None, Instant::now());
        loop {
            tokio::select! {
                started = &mut starting => return started,
                _ = looks.tick() => {}
            }
            if has_hung_up(stream) {
                opening.0.cancel();
            }
            let progress = opening.0.progress().map(Progress::from);
            let Some(now) = progress.filter(|now| told.as_ref() != Some(now)) else { continue };
            if self.server.owner == Owner::Nobody && logged.elapsed() >= LOG_PERIOD {
                logged = Instant::now();
                tracing::info!("{now}");
            }
            say(&self.outbox, &Reply::Progress(now.clone()));
            told = Some(now);
        }
    }
}

/// However waiting for it ends: the client dies, or the daemon is told to stop. One that has ended does not notice.
struct CancelWhenDropped(Opening);

impl Drop for CancelWhenDropped {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Whether the other end of a socket is closed, also when there is something left to read.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    now.is_ok() && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

impl Server {
    /// The pipeline that a client means, if it may have it.
    fn resolve(&self, pipeline: PipelineRef) -> Result<PipelineConfig, Refusal> {
        let refuse = |message| Err(Refusal::new(ErrorKind::Config, message));
        match pipeline {
            PipelineRef::Name(name) => match self.config.pipelines.get(&name) {
                Some(config) => Ok(config.clone()),
                None => {
                    let known: Vec<_> = self.config.pipelines.keys().map(String::as_str).collect();
                    refuse(format!("there is no pipeline '{name}'; this daemon has: {}", known.join(", ")))
                }
            },
            PipelineRef::Inline(value) => {
                let config = PipelineConfig::from_json(value)
                    .map_err(|message| Refusal::new(ErrorKind::Config, message))?;
                if self.owner != Owner::Nobody {
                    Ok(config)
                } else {
                    permission::grant(&self.config.roots, config)
                }
            }
        }
    }
}
