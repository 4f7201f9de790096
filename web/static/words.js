/**
 * Every text of the page in English and Japanese, and how to say it: words, numbers, times.
 *
 * The dictionary is JSON, so that tests can read it. `{name}` stands for what `t` is given.
 */

const WORDS = {
  "en": {
    "language_other": "日本語",
    "sign_in": "Sign in",
    "sign_out": "Sign out",
    "signed_in_as": "{name} ({role})",
    "role_admin": "administrator",
    "role_viewer": "viewer",
    "username": "User name",
    "password": "Password",
    "password_again": "Password again",
    "password_hint": "At least 8 characters. A password manager or four random words do well.",
    "setup_title": "Set up this mesh",
    "setup_intro": "Nobody owns this mesh yet. Choose who administers it: that person signs in here, makes API keys and lets machines in.",
    "setup_do": "Make me the administrator",
    "yours_title": "Are these machines yours?",
    "yours_intro": "They came in while the door was open, as anybody on your network could. Tick those that are yours. Machines that you leave out stay as guests: they answer and may ask, but decide nothing and keep nobody's history. Later: `llm-router peers trust NAME`",
    "came_later": "came just now",
    "where_title": "This mesh has no administrator yet",
    "where_intro": "Whoever has the set-up link becomes the administrator. To find it:",
    "where_terminal": "look at the terminal, or the log, in which llm-router was started;",
    "where_status": "or type on that machine:",
    "where_looks_like": "It looks like this:",
    "fail_link": "This set-up link does not fit this mesh, or no longer does.",
    "note_claimed": "This mesh has an administrator already. Sign in.",
    "note_signed_out": "You are signed out.",
    "note_session_over": "Your session has ended. Sign in again.",
    "fail_login": "Wrong user name or password.",
    "fail_tries": "Too many tries. Wait a minute, then try again.",
    "fail_username": "Say a user name.",
    "fail_password": "Say a password.",
    "fail_short": "A password has at least 8 characters.",
    "fail_repeat": "The two passwords differ.",
    "fail_key_name": "Say what the key is for.",
    "fail_key_scopes": "Tick at least one thing that the key may do.",
    "fail_missing": "This machine does not offer that: it runs another version.",
    "fail_offline": "This machine does not answer.",
    "fail_unknown": "That did not work (status {status}).",
    "busy": "One moment…",
    "choosing": "Choosing a coordinator…",
    "offline": "Connection lost. What you see is old; trying again…",
    "retrying": "{message} Trying again…",
    "loading": "Loading…",
    "door_open": "The door is open for {time} more: machines that are started on this network now join by themselves.",
    "joins_waiting": "Machines that ask to join: {count}. Let them in with: `llm-router approve`",
    "guests_waiting": "Machines that wait for your confirmation: {count}. If one is yours: `llm-router peers trust NAME`",
    "machines": "Machines",
    "machines_none": "No machine is known yet. Start llm-router on another one in this network.",
    "this_machine": "this machine",
    "coordinator": "coordinator",
    "guest": "guest",
    "server": "registered server",
    "state_alive": "online",
    "state_online": "online",
    "state_suspect": "not answering",
    "state_offline": "offline",
    "state_dead": "offline",
    "state_left": "has left",
    "state_unknown": "not seen yet",
    "state_draining": "draining",
    "state_wrong-version": "wrong version",
    "state_cordoned": "takes no work",
    "active": "Active {active}, waiting {queued}",
    "models": "Models",
    "models_none": "none",
    "models_more": "and {count} more",
    "loaded": "loaded",
    "connect": "Connect a program",
    "connect_intro": "Base URL for everything that speaks to OpenAI. Programs on this machine usually need no key, those on other machines use an API key.",
    "totals": "Totals",
    "total_requests": "Requests",
    "total_success": "Succeeded",
    "total_failed": "Failed or cancelled",
    "total_running": "Running",
    "total_tokens": "Tokens",
    "total_average": "Mean duration",
    "requests": "Last 10 requests",
    "requests_none": "No request yet. Try: `llm-router run hello \"What are you?\"`",
    "requests_incomplete": "Some machines have not told their newest requests yet.",
    "when": "When",
    "model": "Model",
    "machine": "Machine",
    "state": "State",
    "duration": "Duration",
    "tokens": "Tokens",
    "status_success": "success",
    "status_error": "error",
    "status_cancelled": "cancelled",
    "status_interrupted": "interrupted",
    "status_running": "running",
    "keys": "API keys",
    "keys_none": "There is no key. Make one for programs on other machines.",
    "key": "Key",
    "name": "Name",
    "begins_with": "Begins with",
    "scopes": "May",
    "made": "Made",
    "expires": "Expires",
    "never": "never",
    "expired": "expired",
    "actions": "Actions",
    "key_new": "New key",
    "key_name": "What it is for",
    "key_may": "What it may do",
    "key_do": "Make key",
    "scope_inference": "use the models of these machines",
    "scope_cloud": "use cloud models too, which cost money",
    "scope_metrics": "read /metrics",
    "scope_admin_read": "see this page and the history",
    "scope_admin": "do everything but manage people",
    "key_made": "The new key",
    "key_once": "Copy it now: it is shown this once, and nobody can look it up later.",
    "copy": "Copy",
    "copied": "Copied.",
    "copy_failed": "The browser did not let us copy: select the text and copy it yourself.",
    "done": "Done",
    "key_delete": "Delete key",
    "key_delete_title": "Delete the key “{name}”?",
    "key_delete_effect": "Programs that use it are refused from now on. It cannot be brought back.",
    "key_keep": "Keep it",
    "key_deleted": "The key {name} is deleted."
  },
  "ja": {
    "language_other": "English",
    "sign_in": "ログイン",
    "sign_out": "ログアウト",
    "signed_in_as": "{name}({role})",
    "role_admin": "管理者",
    "role_viewer": "閲覧者",
    "username": "ユーザー名",
    "password": "パスワード",
    "password_again": "パスワード(確認)",
    "password_hint": "8 文字以上。パスワードマネージャーか、無作為な単語を 4 つ並べるのがおすすめです。",
    "setup_title": "メッシュの初期設定",
    "setup_intro": "このメッシュにはまだ管理者がいません。管理者を決めてください。管理者はここにログインし、API キーを作り、マシンの参加を許可します。",
    "setup_do": "管理者になる",
    "yours_title": "これらはあなたのマシンですか?",
    "yours_intro": "ドアが開いている間に参加したマシンです。ネットワーク上の誰でも参加できました。あなたのマシンにチェックを入れてください。チェックのないマシンはゲストのままです。応答も依頼もできますが、何も決められず、他のマシンの履歴も保持しません。後から変更するには: `llm-router peers trust NAME`",
    "came_later": "たった今参加",
    "where_title": "このメッシュにはまだ管理者がいません",
    "where_intro": "初期設定リンクを開いた人が管理者になります。リンクの場所:",
    "where_terminal": "llm-router を起動したターミナル、またはログ",
    "where_status": "または、そのマシンで次のコマンドを実行:",
    "where_looks_like": "リンクの形:",
    "fail_link": "この初期設定リンクはこのメッシュのものではないか、期限が切れています。",
    "note_claimed": "このメッシュにはすでに管理者がいます。ログインしてください。",
    "note_signed_out": "ログアウトしました。",
    "note_session_over": "セッションが終了しました。もう一度ログインしてください。",
    "fail_login": "ユーザー名またはパスワードが違います。",
    "fail_tries": "試行回数が多すぎます。1 分待ってからやり直してください。",
    "fail_username": "ユーザー名を入力してください。",
    "fail_password": "パスワードを入力してください。",
    "fail_short": "パスワードは 8 文字以上にしてください。",
    "fail_repeat": "2 つのパスワードが一致しません。",
    "fail_key_name": "キーの用途を入力してください。",
    "fail_key_scopes": "キーに許可することを 1 つ以上選んでください。",
    "fail_missing": "このマシンにはその機能がありません(バージョンが異なります)。",
    "fail_offline": "このマシンから応答がありません。",
    "fail_unknown": "失敗しました(ステータス {status})。",
    "busy": "お待ちください…",
    "choosing": "コーディネーターを選出中…",
    "offline": "接続が切れました。表示は古い情報です。再接続しています…",
    "retrying": "{message} 再試行しています…",
    "loading": "読み込み中…",
    "door_open": "ドアはあと {time} 開いています。今このネットワークで起動したマシンは自動で参加します。",
    "joins_waiting": "参加を求めているマシン: {count} 台。許可するには: `llm-router approve`",
    "guests_waiting": "確認待ちのマシン: {count} 台。あなたのマシンなら: `llm-router peers trust NAME`",
    "machines": "マシン",
    "machines_none": "まだマシンがありません。このネットワークの別のマシンで llm-router を起動してください。",
    "this_machine": "このマシン",
    "coordinator": "コーディネーター",
    "guest": "ゲスト",
    "server": "登録サーバー",
    "state_alive": "オンライン",
    "state_online": "オンライン",
    "state_suspect": "応答なし",
    "state_offline": "オフライン",
    "state_dead": "オフライン",
    "state_left": "離脱",
    "state_unknown": "未確認",
    "state_draining": "停止準備中",
    "state_wrong-version": "バージョン違い",
    "state_cordoned": "受付停止中",
    "active": "処理中 {active}、待ち {queued}",
    "models": "モデル",
    "models_none": "なし",
    "models_more": "他 {count} 件",
    "loaded": "ロード済み",
    "connect": "プログラムを接続",
    "connect_intro": "OpenAI 対応プログラムに設定するベース URL です。このマシン上のプログラムは通常キー不要、他のマシンからは API キーを使います。",
    "totals": "合計",
    "total_requests": "リクエスト",
    "total_success": "成功",
    "total_failed": "失敗・中止",
    "total_running": "処理中",
    "total_tokens": "トークン",
    "total_average": "平均時間",
    "requests": "最近のリクエスト 10 件",
    "requests_none": "リクエストはまだありません。お試し: `llm-router run hello \"What are you?\"`",
    "requests_incomplete": "一部のマシンの最新のリクエストはまだ届いていません。",
    "when": "日時",
    "model": "モデル",
    "machine": "マシン",
    "state": "状態",
    "duration": "時間",
    "tokens": "トークン",
    "status_success": "成功",
    "status_error": "エラー",
    "status_cancelled": "中止",
    "status_interrupted": "中断",
    "status_running": "処理中",
    "keys": "API キー",
    "keys_none": "キーはありません。他のマシンのプログラムのために作成してください。",
    "key": "キー",
    "name": "名前",
    "begins_with": "先頭",
    "scopes": "許可",
    "made": "作成",
    "expires": "期限",
    "never": "なし",
    "expired": "期限切れ",
    "actions": "操作",
    "key_new": "新しいキー",
    "key_name": "用途",
    "key_may": "許可すること",
    "key_do": "キーを作成",
    "scope_inference": "これらのマシンのモデルを使う",
    "scope_cloud": "クラウドのモデルも使う(料金がかかります)",
    "scope_metrics": "/metrics を読む",
    "scope_admin_read": "この画面と履歴を見る",
    "scope_admin": "ユーザー管理以外のすべて",
    "key_made": "新しいキー",
    "key_once": "今コピーしてください。表示は一度だけで、後から見ることはできません。",
    "copy": "コピー",
    "copied": "コピーしました。",
    "copy_failed": "ブラウザーがコピーを許可しませんでした。選択して手動でコピーしてください。",
    "done": "完了",
    "key_delete": "キーを削除",
    "key_delete_title": "キー「{name}」を削除しますか?",
    "key_delete_effect": "このキーを使うプログラムは今後拒否されます。元に戻すことはできません。",
    "key_keep": "残す",
    "key_deleted": "キー {name} を削除しました。"
  }
};

const LANGUAGES = Object.keys(WORDS);
const REMEMBERED = "llm-router-language";

let language = remembered() ?? navigator.languages?.map(short).find(isKnown) ?? "en";

/** The language that is shown now. */
export function spoken() {
  return language;
}

/** Shows the other language from now on, also after the page is loaded again. */
export function switchLanguage() {
  language = LANGUAGES.find((each) => each !== language);
  try {
    localStorage.setItem(REMEMBERED, language);
  } catch {
    // A browser that keeps nothing asks again next time.
  }
}

/** The language that the toggle leads to. */
export function otherLanguage() {
  return LANGUAGES.find((each) => each !== language);
}

/** True when there is such a text. */
export function has(key) {
  return Object.hasOwn(WORDS.en, key);
}

/** The text `key`, `{name}` in it replaced by `values.name`. */
export function t(key, values = {}) {
  const text = has(key) ? WORDS[language][key] : key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole));
}

/** What a machine or a request calls its state, in words; as it is when nobody translated it. */
export function stateWord(prefix, state) {
  return has(`${prefix}_${state}`) ? t(`${prefix}_${state}`) : state;
}

/** A number as people write it, from a billion on in short; a dash when there is none. */
export function number(value) {
  if (typeof value !== "number") return "–";
  const style = value < 1e9 ? {} : { notation: "compact", maximumFractionDigits: 2 };
  return new Intl.NumberFormat(language, style).format(value);
}

/** Milliseconds as people say them: 840 ms, 2.3 s, 3 min 5 s. */
export function duration(ms) {
  if (typeof ms !== "number") return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${number(Math.round(ms / 100) / 10)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** Seconds as a clock shows them: 9:05. */
export function countdown(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** A time in RFC 3339 as people write it here: without the day when it is today. */
export function moment(text) {
  const date = new Date(text ?? "");
  if (Number.isNaN(date.getTime())) return "–";
  const isToday = date.toDateString() === new Date().toDateString();
  const style = isToday ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat(language, style).format(date);
}

function remembered() {
  try {
    const found = localStorage.getItem(REMEMBERED);
    return isKnown(found) ? found : null;
  } catch {
    return null;
  }
}

function short(tag) {
  return tag.slice(0, 2).toLowerCase();
}

function isKnown(tag) {
  return LANGUAGES.includes(tag);
}
