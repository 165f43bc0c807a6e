//! Keeps the authority of this installation in its Secret, tells the agents in the ConfigMap whom to trust, and keeps the
//! controller's own identity good (out). What was decided is written before it is used.

mod error;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use self::error::KeepError;
use super::{SPREAD, Step, Stored, Terms, is_due, plan, signer, trusted, trusts};
use crate::{
    certs::authority::{Authority, AuthorityError, Pair, Validity, facts},
    clock::Clock,
    controller::{error::is_code, write::answer},
    rpc::tls::Identity,
    sentence::sentence,
};

/// How often Secret and ConfigMap are looked at, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The key of the ConfigMap.
const TRUSTED: &str = "ca.crt";
/// Whose identity it is, for errors.
const WHOSE: &str = "the controller";

/// Where the authority is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The namespace of both.
    pub namespace: String,
    /// The Secret.
    pub secret: String,
    /// The ConfigMap.
    pub config_map: String,
}

/// What signs now.
pub struct Signer {
    /// The authority.
    pub authority: Authority,
    /// How long what it signs is valid.
    pub lifetime: Duration,
}

/// What the rest of the controller needs of it.
#[derive(Clone)]
pub struct Kept {
    /// The controller's own identity, always good.
    pub identity: Identity,
    /// Who signs now.
    pub signer: watch::Receiver<Arc<Signer>>,
}

/// Keeps it.
pub struct Keeper {
    client: Client,
    clock: Clock,
    place: Place,
    terms: Terms,
    /// The controller's own certificate, and the certificate of the authority that signed it.
    own: Option<(Pair, String)>,
    /// Since when another authority signs.
    other_since: Option<Instant>,
    /// What was there when all was well last.
    last: Option<Stored>,
}

/// What holds from now on.
struct Now {
    /// The controller's own certificate, and whom to trust.
    own: (Pair, String),
    signer: Arc<Signer>,
}

/// What the rest of the controller has of it.
struct Used {
    own: (Pair, String),
    identity: Identity,
    signer: watch::Sender<Arc<Signer>>,
}

impl Used {
    fn take(used: &mut Option<Used>, now: Now) -> Result<(), KeepError> {
        let Now { own, signer } = now;
        let wrong = |source| KeepError::Own { source };
        let Some(used) = used else {
            let identity = Identity::of(WHOSE, &own.0, &own.1).map_err(wrong)?;
            *used = Some(Used { own, identity, signer: watch::channel(signer).0 });
            return Ok(());
        };
        if used.own != own {
            used.identity.set(WHOSE, &own.0, &own.1).map_err(wrong)?;
            used.own = own;
        }
        used.signer.send_if_modified(|before| {
            let changed = before.authority.certificate() != signer.authority.certificate();
            *before = signer;
            changed
        });
        Ok(())
    }
}

impl Keeper {
    /// Nothing is read yet.
    pub fn new(client: Client, clock: Clock, place: Place, terms: Terms) -> Keeper {
        Keeper { client, clock, place, terms, own: None, other_since: None, last: None }
    }

    /// Waits until there is an authority, and goes on keeping it until `end`; None when that comes first. `tell` is told
    /// what is wrong, once per trouble, and None when it is over.
    pub async fn begin(
        self,
        tell: impl Fn(Option<&KeepError>) + Send + 'static,
        end: CancellationToken,
    ) -> Option<Kept> {
        let (sender, first) = oneshot::channel();
        tokio::spawn(async move { end.run_until_cancelled(self.keep(sender, tell)).await });
        first.await.ok()
    }

    async fn keep(mut self, first: oneshot::Sender<Kept>, tell: impl Fn(Option<&KeepError>)) {
        let mut first = Some(first);
        let mut used: Option<Used> = None;
        let mut said = String::new();
        let look = (self.terms.certificate / 20).clamp(LOOK.0, LOOK.1);
        loop {
            let (now, trouble) = self.refresh().await;
            let done = now.map_or(Ok(()), |now| Used::take(&mut used, now));
            match trouble.map_or(done, Err) {
                Ok(()) => {
                    if !std::mem::take(&mut said).is_empty() {
                        tell(None);
                    }
                    if let (Some(used), Some(first)) = (&used, first.take()) {
                        // Nobody waits any more only when the controller ends.
                        let _ = first.send(Kept { identity: used.identity.clone(), signer: used.signer.subscribe() });
                    }
                }
                Err(error) => {
                    let text = sentence(&error);
                    if said != text {
                        tell(Some(&error));
                        said = text;
                    }
                }
            }
            tokio::time::sleep(if first.is_some() { LOOK.0 } else { look }).await;
        }
    }

    /// Does what is to be done now: the controller's certificate, whom to trust, and who signs. Where Secret or ConfigMap
    /// are in trouble, what was there last holds, so that no certificate ends for it.
    async fn refresh(&mut self) -> (Option<Now>, Option<KeepError>) {
        let now = u64::try_from((self.clock)().as_second()).unwrap_or_default();
        let trouble = match self.settle(now).await {
            Ok(stored) => match self.hold(&stored, now) {
                Ok(holds) => {
                    self.last = Some(stored);
                    return (Some(holds), None);
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        let last = self.last.clone();
        (last.and_then(|last| self.hold(&last, now).ok()), Some(trouble))
    }

    fn hold(&mut self, stored: &Stored, now: u64) -> Result<Now, KeepError> {
        let secret = self.name(&self.place.secret);
        let authority = signer(stored).map_err(|source| KeepError::Unusable { secret: secret.clone(), source })?;
        let authority = authority.ok_or_else(|| KeepError::Missing { secret: secret.clone() })?;
        let validity = authority.validity();
        if now < validity.from || now >= validity.until {
            return Err(KeepError::NotNow { secret, validity, now });
        }
        let own =
            self.own(&authority, &stored.trusted, now).map_err(|source| KeepError::Unusable { secret, source })?;
        let signer = Arc::new(Signer { authority, lifetime: self.terms.certificate });
        Ok(Now { own: (own, stored.trusted.clone()), signer })
    }

    /// The controller's own certificate: made anew when it is due, when nobody trusts any more who signed it, and when
    /// another authority has signed for so long that every agent trusts it.
    fn own(&mut self, authority: &Authority, trusted: &str, now: u64) -> Result<Pair, AuthorityError> {
        if let Some((pair, by)) = &self.own {
            let due = facts(&pair.certificate).is_none_or(|own| is_due(own.validity, now)) || !trusts(trusted, by);
            let other = by != authority.certificate();
            let since = if other { *self.other_since.get_or_insert_with(Instant::now) } else { Instant::now() };
            if !due && since.elapsed() < SPREAD {
                return Ok(pair.clone());
            }
        }
        let pair = authority.controller(Validity::starting(now, self.terms.certificate))?;
        self.other_since = None;
        self.own = Some((pair.clone(), authority.certificate().to_owned()));
        Ok(pair)
    }

    /// Writes what has to be written, and answers with what is there then.
    async fn settle(&self, now: u64) -> Result<Stored, KeepError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.place.namespace);
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.place.namespace);
        let read = |kind, name: &str| {
            let name = self.name(name);
            move |source| KeepError::Api { verb: "Reading", kind, name, source: Box::new(source) }
        };
        loop {
            let secret = answer(secrets.get(&self.place.secret)).await.map_err(read("Secret", &self.place.secret))?;
            let map =
                answer(maps.get(&self.place.config_map)).await.map_err(read("ConfigMap", &self.place.config_map))?;
            let mut stored = stored(&secret, &map);
            let version = secret.metadata.resource_version.clone();
            let make = |name| {
                let validity = Validity::starting(now, self.terms.authority);
                Authority::generate(validity).map_err(|source| KeepError::Unusable { secret: self.name(name), source })
            };
            match plan(&stored, &self.terms, now) {
                Step::Keep => {}
                Step::Wait => return Err(KeepError::Missing { secret: self.name(&self.place.secret) }),
                Step::Make => stored.current = Some(make(&self.place.secret)?),
                Step::Stage => stored.next = Some(make(&self.place.secret)?),
                Step::Promote => stored.current = stored.next.take(),
            }
            if stored.current != current(&secret) || stored.next != next(&secret) {
                match self.write_secret(&secrets, &stored, version).await {
                    // Somebody else was first.
                    Err(error) if is_code(&error, 409) => continue,
                    written => written.map_err(|source| self.not_written("Secret", &self.place.secret, source))?,
                }
                tracing::info!(secret = self.name(&self.place.secret), "The authority was made or has changed");
            }
            let wanted = trusted(&stored, now);
            // Never an empty list: it would only take from the agents what they have.
            if wanted != stored.trusted && !wanted.is_empty() {
                let patch = json!({
                    "metadata": { "resourceVersion": map.metadata.resource_version },
                    "data": { TRUSTED: wanted },
                });
                let parameters = PatchParams::default();
                match answer(maps.patch(&self.place.config_map, &parameters, &Patch::Merge(patch))).await {
                    Err(error) if is_code(&error, 409) => continue,
                    written => {
                        written.map_err(|source| self.not_written("ConfigMap", &self.place.config_map, source))?;
                    }
                }
                stored.trusted = wanted;
            }
            return Ok(stored);
        }
    }

    async fn write_secret(
        &self,
        secrets: &Api<Secret>,
        stored: &Stored,
        version: Option<String>,
    ) -> Result<(), kube::Error> {
        let mut data: BTreeMap<&str, Option<ByteString>> = BTreeMap::new();
        let pairs = [(&stored.current, ["tls.crt", "tls.key"]), (&stored.next, ["next.crt", "next.key"])];
        for (pair, [certificate, key]) in pairs {
            let bytes = |text: &String| ByteString(text.clone().into_bytes());
            data.insert(certificate, pair.as_ref().map(|pair| bytes(&pair.certificate)));
            data.insert(key, pair.as_ref().map(|pair| bytes(&pair.key)));
        }
        // With the version that was read: never over what somebody else has written since.
        let patch = json!({ "metadata": { "resourceVersion": version }, "data": data });
        answer(secrets.patch(&self.place.secret, &PatchParams::default(), &Patch::Merge(patch))).await.map(drop)
    }

    fn not_written(&self, kind: &'static str, name: &str, source: kube::Error) -> KeepError {
        KeepError::Api { verb: "Writing", kind, name: self.name(name), source: Box::new(source) }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.place.namespace)
    }
}

fn stored(secret: &Secret, map: &ConfigMap) -> Stored {
    let trusted = map.data.as_ref().and_then(|data| data.get(TRUSTED)).cloned().unwrap_or_default();
    Stored { current: current(secret), next: next(secret), trusted }
}

fn current(secret: &Secret) -> Option<Pair> {
    pair(secret, ["tls.crt", "tls.key"])
}

fn next(secret: &Secret) -> Option<Pair> {
    pair(secret, ["next.crt", "next.key"])
}

/// None where neither is there; a half one is there and cannot be used.
fn pair(secret: &Secret, [certificate, key]: [&str; 2]) -> Option<Pair> {
    let text = |name| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name)).filter(|bytes| !bytes.0.is_empty());
        bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
    };
    match (text(certificate), text(key)) {
        (None, None) => None,
        (certificate, key) => Some(Pair { certificate: certificate.unwrap_or_default(), key: key.unwrap_or_default() }),
    }
}

#[cfg(test)]
mod tests;
