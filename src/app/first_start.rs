//! What happens when there is nothing yet: a secret is made, and provider keys found in the
//! environment become a working set-up.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use super::AppError;
use crate::config::Config;
use crate::config::resources::{
    AccountResource, ApiKeyResource, GroupResource, Resources, UserResource,
};
use crate::domain::{
    AccountType, Credentials, ModelMapping, Money, Multiplier, Platform, Secret, SubscriptionType,
};
use crate::storage::{ApplyOptions, StorageError, Store};

/// The generated secret, inside the data directory.
const SECRET_FILE: &str = "secret";
/// The store, inside the data directory.
const DATABASE_FILE: &str = "tollgate.db";
/// A newcomer's own balance: their provider bills them anyway, this must not be in the way.
const OPENING_BALANCE: Money = Money::from_usd(1_000_000);
/// Requests at once for each account and for the user that are made from the environment.
const CONCURRENCY: u32 = 50;

/// Provider keys in the environment, and what is made of each.
const PROVIDERS: [(&str, Platform); 3] = [
    ("OPENAI_API_KEY", Platform::OpenAi),
    ("ANTHROPIC_API_KEY", Platform::Anthropic),
    ("GEMINI_API_KEY", Platform::Gemini),
];

/// Whether there is a store already.
pub fn has_store(config: &Config) -> bool {
    config.data_dir.join(DATABASE_FILE).exists()
}

/// The configured secret; else the one in the data directory, made when there is nothing yet.
pub fn secret(config: &Config) -> Result<Secret, AppError> {
    if let Some(secret) = &config.secret {
        return Ok(secret.clone());
    }
    let directory = &config.data_dir;
    let path = directory.join(SECRET_FILE);
    let failed = |source| AppError::Secret {
        path: path.clone(),
        source,
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Secret::new(text.trim())),
        Ok(_) => {
            return Err(failed(std::io::Error::other(
                "the file is empty; restore it, without it no stored key can be used",
            )));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if has_store(config) {
        return Err(failed(std::io::Error::other(
            "the file is missing, and the store beside it was made with it; restore it, or set \
             security.secret (-c FILE) to what the store was made with",
        )));
    }
    make_secret(directory, &path).map_err(failed)?;
    // Another command of ours may have been quicker: what stands there counts.
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    Ok(Secret::new(text.trim()))
}

/// Makes a secret in one step: nobody ever sees half of it, and a crash leaves none.
fn make_secret(directory: &Path, path: &Path) -> std::io::Result<()> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system gives no randomness"))?;
    let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    if !directory.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let draft = directory.join(format!("{SECRET_FILE}.{}", std::process::id()));
    let linked = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            writeln!(file, "{text}")?;
            file.sync_all()?;
            std::fs::hard_link(&draft, path)
        });
    let _ = std::fs::remove_file(&draft);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(directory)?.sync_all(),
    }
}

/// Fills an empty store from provider keys in the environment and prints how to use it, once.
pub async fn seed(
    store: &Store,
    config: &Config,
    env: &BTreeMap<String, String>,
) -> Result<(), StorageError> {
    let mut found: Vec<(Platform, Secret)> = Vec::new();
    for (name, platform) in PROVIDERS {
        let value = env.get(name).map_or("", |value| value.trim());
        if !value.bytes().all(|b| b.is_ascii_graphic()) {
            log::warn!("{name} is no provider key (it has spaces or the like) and is not used");
        } else if !value.is_empty() {
            found.push((platform, Secret::new(value)));
        }
    }
    if found.is_empty() || !store.is_empty().await? {
        return Ok(());
    }
    let resources = resources(&found);
    let report = store.apply(&resources, ApplyOptions::default()).await?;
    let address = config.server.listen.first().map(|listener| {
        let scheme = if listener.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", listener.addr)
    });
    for (name, key) in &report.generated_keys {
        // To standard output: this is an answer to the person who started us, not a log line.
        println!("API key {name} (shown once): {}", key.expose());
    }
    for (platform, _) in &found {
        if !matches!(platform, Platform::OpenAi | Platform::Anthropic) {
            println!(
                "The {platform} account is stored, but this version serves groups of platforms \
                 openai and anthropic only."
            );
        }
    }
    let openai = report
        .generated_keys
        .iter()
        .find(|(name, _)| name.as_str() == default_key_name(Platform::OpenAi));
    if let (Some(address), Some((_, key))) = (&address, openai) {
        println!(
            "Try it:\n  curl {address}/v1/responses -H 'Authorization: Bearer {}' \
             -H 'Content-Type: application/json' -d '{{\"model\":\"gpt-5-mini\",\"input\":\"Hello!\"}}'",
            key.expose()
        );
    }
    let anthropic = report
        .generated_keys
        .iter()
        .find(|(name, _)| name.as_str() == default_key_name(Platform::Anthropic));
    if let (Some(address), Some((_, key))) = (address, anthropic) {
        println!(
            "Try it:\n  curl {address}/v1/messages -H 'x-api-key: {}' -H 'Content-Type: application/json' \
             -d '{{\"model\":\"claude-haiku-4-5\",\"max_tokens\":256,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'",
            key.expose()
        );
    }
    Ok(())
}

/// A key belongs to one group, so the one user `default` gets a key for each.
fn default_key_name(platform: Platform) -> String {
    format!("default-{platform}")
}

fn resources(found: &[(Platform, Secret)]) -> Resources {
    let mut resources = Resources {
        users: vec![UserResource {
            name: "default".into(),
            enabled: true,
            balance: Some(OPENING_BALANCE),
            concurrency: CONCURRENCY,
            rpm_limit: 0,
            group_multipliers: BTreeMap::new(),
        }],
        ..Resources::default()
    };
    for (platform, key) in found {
        resources.groups.push(GroupResource {
            name: platform.to_string(),
            enabled: true,
            platform: *platform,
            rate_multiplier: None,
            subscription_type: SubscriptionType::Standard,
            daily_limit: None,
            weekly_limit: None,
            monthly_limit: None,
            rpm_limit: 0,
            options: serde_json::Map::new(),
        });
        resources.accounts.push(AccountResource {
            name: format!("{platform}-1"),
            enabled: true,
            platform: *platform,
            account_type: AccountType::ApiKey,
            credentials: Credentials {
                api_key: key.clone(),
                ..Credentials::default()
            },
            groups: vec![platform.to_string()],
            concurrency: CONCURRENCY,
            priority: 50,
            model_mapping: ModelMapping::default(),
            rate_multiplier: Multiplier::ONE,
            load_factor: None,
            schedulable: true,
            expires_at: None,
            proxy: None,
            extra: serde_json::Map::new(),
        });
        resources.api_keys.push(ApiKeyResource {
            name: default_key_name(*platform),
            enabled: true,
            key: None,
            user: "default".into(),
            group: Some(platform.to_string()),
            quota: None,
            rate_limits: [None; 3],
            expires_at: None,
            ip_allow: Vec::new(),
            ip_deny: Vec::new(),
        });
    }
    resources
}
