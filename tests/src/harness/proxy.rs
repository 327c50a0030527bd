//! Between gateways and Redis: passes everything on, takes down what scripts answered, and cuts connections where it is
//! told to: before a script is sent on, or after it ran and before its reply is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use super::{
    history::{Event, History, Log as _, now},
    resp::{self, Value},
    scripts::{Call, Scripts, events},
};

/// A place where a connection is cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Failpoint {
    /// The script's name.
    pub script: String,
    /// After it ran: its reply is lost. Else it never ran.
    pub after: bool,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Redis' own socket; known once the cluster has one.
    upstream: Mutex<Option<PathBuf>>,
    scripts: Scripts,
    history: History,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Names of scripts by what Redis calls them.
    hashes: HashMap<String, String>,
    armed: BTreeSet<Failpoint>,
    cut: BTreeMap<Failpoint, u64>,
}

/// A command whose reply is still to come.
struct Sent {
    at: u64,
    what: What,
    cut_after: bool,
}

enum What {
    Call(Call),
    /// Of a script that nobody had loaded through here: it may be loaded by another before the call gets there.
    Unknown {
        hash: String,
        arguments: Vec<String>,
    },
    /// The end of a transaction, and what was asked for in it: the answers come together.
    Transaction(Vec<What>),
    Other,
}

/// What Redis says, as far as it was read.
struct Replies {
    from: OwnedReadHalf,
    buffer: BytesMut,
}

type Waiting = Arc<Mutex<VecDeque<Sent>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Proxy ===

impl Proxy {
    /// Listens on a socket at `path`.
    pub fn listen(path: &Path, history: History) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let shared = Arc::new(Shared {
            upstream: Mutex::default(),
            scripts: Scripts::read(),
            history,
            state: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(Arc::clone(&serving), client));
            }
        });
        Ok(Self { shared, task })
    }

    /// Where Redis is.
    pub fn lead_to(&self, socket: &Path) {
        *locked(&self.shared.upstream) = Some(socket.to_owned());
    }

    /// Every failpoint that there is.
    pub fn failpoints(&self) -> Vec<Failpoint> {
        let names = self.shared.scripts.names().into_iter();
        names
            .flat_map(|script| {
                [false, true].map(|after| Failpoint {
                    script: script.clone(),
                    after,
                })
            })
            .collect()
    }

    /// The next call of this script is cut.
    pub fn arm(&self, failpoint: Failpoint) {
        locked(&self.shared.state).armed.insert(failpoint);
    }

    /// Cuts nothing more.
    pub fn disarm(&self) {
        locked(&self.shared.state).armed.clear();
    }

    /// How often each failpoint has cut.
    pub fn cuts(&self) -> BTreeMap<Failpoint, u64> {
        locked(&self.shared.state).cut.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === a connection ===

/// What a connection's last calls do is taken down for so long after their caller has gone.
const LAST_REPLIES: Duration = Duration::from_secs(10);

/// Until either side is gone, or the connection is cut; dropping the halves closes both sides.
async fn serve(shared: Arc<Shared>, client: UnixStream) {
    let upstream = locked(&shared.upstream).clone();
    let Some(upstream) = upstream else { return };
    let Ok(server) = UnixStream::connect(upstream).await else {
        return;
    };
    let (client_read, mut client_write) = client.into_split();
    let (server_read, mut server_write) = server.into_split();
    let waiting = Waiting::default();
    let mut replies = Replies {
        from: server_read,
        buffer: BytesMut::new(),
    };
    tokio::select! {
        _ = forward(&shared, &waiting, client_read, &mut server_write) => {}
        _ = back(&shared, &waiting, &mut replies, Some(&mut client_write)) => return,
    }
    drop(client_write);
    // What was sent on runs though its gateway is gone; the server's side stays open until it has answered.
    let last = back(&shared, &waiting, &mut replies, None);
    let _ = tokio::time::timeout(LAST_REPLIES, last).await;
}

/// Commands to Redis. Returns at the connection's end.
async fn forward(
    shared: &Shared,
    waiting: &Waiting,
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let mut transaction: Option<Vec<What>> = None;
    loop {
        while let Some((raw, value)) = resp::take(&mut buffer).map_err(garbled)? {
            let mut what = shared.understand(&value);
            if let What::Call(call) = &what
                && shared.cuts(&call.script, false)
            {
                return Ok(());
            }
            match (value.at(0).to_ascii_uppercase().as_str(), &mut transaction) {
                ("MULTI", transaction) => *transaction = Some(Vec::new()),
                ("EXEC", transaction) => what = What::Transaction(transaction.take().unwrap_or_default()),
                // It runs with the others, and what comes now says only that it will.
                (_, Some(transaction)) => transaction.push(std::mem::replace(&mut what, What::Other)),
                (_, None) => {}
            }
            let cut_after = what.calls().any(|call| shared.cuts(&call.script, true));
            let at = now();
            locked(waiting).push_back(Sent { at, what, cut_after });
            to.write_all(&raw).await?;
        }
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Replies to the gateway, or, where it is gone, until none is to come. What is pushed on a subscription answers no command,
/// and is passed on like a reply.
async fn back(
    shared: &Shared,
    waiting: &Waiting,
    Replies { from, buffer }: &mut Replies,
    mut to: Option<&mut OwnedWriteHalf>,
) -> io::Result<()> {
    loop {
        if to.is_none() && locked(waiting).is_empty() {
            return Ok(());
        }
        while let Some((raw, value)) = resp::take(buffer).map_err(garbled)? {
            let sent = locked(waiting).pop_front();
            if let Some(sent) = sent {
                shared.answered(&sent.what, &value, sent.at);
                // A call that was refused did not run: the script is not loaded, say.
                let ran = sent
                    .what
                    .answers(&value)
                    .all(|value| !matches!(value, Value::Error(_)));
                let call = sent.what.calls().next().filter(|_| sent.cut_after);
                match call {
                    Some(call) if ran => {
                        shared.fired(&call.script, true);
                        return Ok(());
                    }
                    Some(call) => shared.arm_again(&call.script),
                    None => {}
                }
            }
            if let Some(to) = &mut to {
                to.write_all(&raw).await?;
            }
        }
        if from.read_buf(buffer).await? == 0 {
            return Ok(());
        }
    }
}

fn garbled(garbled: resp::Garbled) -> io::Error {
    io::Error::other(format!("{garbled:?}"))
}

// === impl What ===

impl What {
    /// The scripts that it calls, as far as they are known.
    fn calls(&self) -> impl Iterator<Item = &Call> {
        let all = match self {
            What::Transaction(all) => &all[..],
            one => std::slice::from_ref(one),
        };
        all.iter().filter_map(|what| match what {
            What::Call(call) => Some(call),
            _ => None,
        })
    }

    /// The answers in a reply: a transaction has several, unless it was refused as a whole.
    fn answers<'reply>(&self, reply: &'reply Value) -> impl Iterator<Item = &'reply Value> {
        let all = match (self, reply) {
            (What::Transaction(_), Value::Error(_)) => std::slice::from_ref(reply),
            (What::Transaction(_), reply) => reply.items(),
            (_, reply) => std::slice::from_ref(reply),
        };
        all.iter()
    }
}

// === impl Shared ===

impl Shared {
    fn understand(&self, command: &Value) -> What {
        let name = command.at(0).to_ascii_uppercase();
        if name == "SCRIPT" && command.at(1).eq_ignore_ascii_case("LOAD") {
            // Not from the reply: others may call it before that is here.
            let text = command.at(2);
            if let Some(name) = self.scripts.name_of(&text) {
                let hash = redis::Script::new(&text).get_hash().to_owned();
                locked(&self.state).hashes.insert(hash, name.to_owned());
            }
            return What::Other;
        }
        if name != "EVALSHA" {
            return What::Other;
        }
        let hash = command.at(1);
        let keys: usize = command.at(2).parse().unwrap_or(0);
        let arguments = command.items().iter().skip(3 + keys).map(Value::text).collect();
        match self.script_of(&hash) {
            Some(script) => What::Call(Call { script, arguments }),
            None => What::Unknown { hash, arguments },
        }
    }

    fn script_of(&self, hash: &str) -> Option<String> {
        locked(&self.state).hashes.get(hash).cloned()
    }

    /// Whether the connection is to be cut here; a failpoint cuts once.
    fn cuts(&self, script: &str, after: bool) -> bool {
        let failpoint = Failpoint {
            script: script.to_owned(),
            after,
        };
        let cuts = locked(&self.state).armed.remove(&failpoint);
        if cuts && !after {
            self.fired(script, false);
        }
        cuts
    }

    fn arm_again(&self, script: &str) {
        locked(&self.state).armed.insert(Failpoint {
            script: script.to_owned(),
            after: true,
        });
    }

    fn fired(&self, script: &str, after: bool) {
        let script = script.to_owned();
        self.history.write(&Event::Cut {
            script: script.clone(),
            after,
        });
        *locked(&self.state)
            .cut
            .entry(Failpoint { script, after })
            .or_default() += 1;
    }

    fn answered(&self, what: &What, reply: &Value, at: u64) {
        let late;
        let call = match what {
            What::Call(call) => call,
            What::Unknown { hash, arguments } => {
                let Some(script) = self.script_of(hash) else {
                    return;
                };
                let arguments = arguments.clone();
                late = Call { script, arguments };
                &late
            }
            What::Transaction(all) => {
                for (what, reply) in all.iter().zip(reply.items()) {
                    self.answered(what, reply, at);
                }
                return;
            }
            What::Other => return,
        };
        for event in events(call, reply, at) {
            self.history.write(&event);
        }
    }
}

#[cfg(test)]
mod tests;
