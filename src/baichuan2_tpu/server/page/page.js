// What the browser does: keeps conversations, shows one of them, and adds the answers that come from the
// server. One localStorage item per conversation, so that two open pages do not overwrite each other's.
// A function named in gradio_app.py returns values for components; undefined leaves one unchanged.
window.baichuan2 = (() => {
  const TEXTS = "{{texts}}";
  const LABELS = "{{labels}}";
  const PREFIX = "baichuan2.conversation.";
  const SAVE_EVERY_MS = 1000;
  const TITLE_LENGTH = 60;
  const NARROW_PX = 768; // below it Gradio's sidebar covers the page
  // The fields of the settings, as components.py has them.
  const SETTINGS = ["system", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed"];

  const records = new Map(); // id -> {id, asked, system, messages, note}
  const turns = new Map(); // id of a running turn -> id of its conversation
  const saved = new Map(); // id -> when it was last written
  let current = null; // id of the conversation on the page; null is a new, empty one
  let draftSystem = "";
  let isFull = false;
  let drawn = ""; // what the list shows now
  let list = null; // the element with the conversations
  let select = () => {}; // tells Gradio that another conversation was chosen

  const read = (name) => {
    try {
      return localStorage.getItem(`baichuan2.${name}`);
    } catch {
      return null; // storage is disabled
    }
  };
  const write = (name, value) => {
    try {
      localStorage.setItem(`baichuan2.${name}`, value);
      return true;
    } catch {
      return false;
    }
  };

  const isLanguage = (name) => Object.hasOwn(TEXTS, name ?? "");
  let language = isLanguage(read("language")) ? read("language") : (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  const text = (name, value) => TEXTS[language][name].replace("{0}", value ?? "");
  const update = (properties) => ({ __type__: "update", ...properties });
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16)).join("");
  const runningTurn = (id) => [...turns].find(([, conversation]) => conversation === id)?.[0];

  // Conversations ----------------------------------------------------------------------------------------

  const isMessage = (message) => typeof message.role === "string" && typeof message.content === "string";

  function parse(key, value) {
    try {
      const record = JSON.parse(value);
      if (record.id === key.slice(PREFIX.length) && record.messages.every(isMessage)) return record;
    } catch {
      // an item of something else, or a damaged one
    }
    return null;
  }

  function loadAll() {
    try {
      for (const [key, value] of Object.entries(localStorage)) {
        const record = key.startsWith(PREFIX) ? parse(key, value) : null;
        if (record) records.set(record.id, record);
      }
    } catch {
      // storage is disabled
    }
  }

  function save(record) {
    saved.set(record.id, Date.now());
    isFull = !write(PREFIX.slice("baichuan2.".length) + record.id, JSON.stringify(record));
  }

  function remove(id) {
    if (!records.has(id) || runningTurn(id) !== undefined || !confirm(text("confirm"))) return;
    records.delete(id);
    try {
      localStorage.removeItem(PREFIX + id);
    } catch {
      // then it was not stored either
    }
    if (id === current) current = null;
  }

  function title(record) {
    const question = record.messages.find((message) => message.role === "user");
    return question ? question.content.trim().slice(0, TITLE_LENGTH) : text("untitled");
  }

  function button(name, label, shown, act) {
    const element = document.createElement("button");
    element.className = name;
    element.title = label;
    element.textContent = shown;
    element.addEventListener("click", act);
    return element;
  }

  function row(record) {
    const element = document.createElement("li");
    element.classList.toggle("is-current", record.id === current);
    element.classList.toggle("is-running", runningTurn(record.id) !== undefined);
    const open = () => {
      current = record.id;
      select();
    };
    const drop = () => {
      remove(record.id);
      select();
    };
    element.append(button("open", title(record), title(record), open));
    if (runningTurn(record.id) === undefined) element.append(button("delete", text("delete"), "✕", drop));
    return element;
  }

  function drawList() {
    const sorted = [...records.values()].sort((first, second) => second.asked - first.asked);
    const rows = sorted.map((record) => [record.id, title(record), runningTurn(record.id)]);
    const next = JSON.stringify([language, current, rows]);
    if (!list || next === drawn) return; // a row that is replaced while it is pressed would miss the click
    drawn = next;
    list.replaceChildren(...sorted.map(row));
  }

  window.addEventListener("storage", ({ key, newValue }) => {
    if (!key?.startsWith(PREFIX)) return;
    const id = key.slice(PREFIX.length);
    if (runningTurn(id) !== undefined) return; // this page has the newer state
    const record = newValue === null ? null : parse(key, newValue);
    if (record) records.set(id, record);
    else records.delete(id);
    if (id === current) select();
    else drawList();
  });

  // What is shown ----------------------------------------------------------------------------------------

  const escapeHtml = (value) => {
    const element = document.createElement("p");
    element.textContent = value;
    return element.innerHTML;
  };

  function figures(note) {
    if (!note.is_over && note.has_text) return [];
    if (!note.is_over) return [note.read_percent == null ? text("waiting") : text("reading", note.read_percent)];
    const parts = [];
    if (note.first_token_s !== null) parts.push(text("first_token", note.first_token_s.toFixed(2)));
    if (note.tok_per_s !== null) parts.push(text("rate", note.tok_per_s.toFixed(1)));
    if (note.tokens) parts.push(text("tokens", note.tokens));
    if (note.finish_reason === "cancelled" || note.finish_reason === "length") parts.push(text(note.finish_reason));
    return parts;
  }

  const errorText = (note) => TEXTS[language][`error_${note.error_code}`] ?? text("error", note.error);

  function noteHtml(note) {
    if (isFull) return `<p class="note is-error" role="alert">${escapeHtml(text("full"))}</p>`;
    if (!note) return '<p class="note"></p>';
    if (note.error) return `<p class="note is-error" role="alert">${escapeHtml(errorText(note))}</p>`;
    const parts = figures(note);
    if (note.dropped_rounds) parts.push(text("dropped", note.dropped_rounds));
    return `<p class="note" role="status">${escapeHtml(parts.join(" · "))}</p>`;
  }

  const shownMessages = (record) =>
    record.messages.map(({ role, content }) => ({
      role,
      metadata: null,
      options: null,
      content: [{ type: "text", text: content }],
    }));

  function keepPlace() {
    try {
      sessionStorage.setItem("baichuan2.current", current ?? "");
    } catch {
      // storage is disabled: a page that is loaded again begins anew
    }
  }

  function keptPlace() {
    try {
      return sessionStorage.getItem("baichuan2.current"); // of this tab, before it was reloaded
    } catch {
      return null;
    }
  }

  function keptSettings(defaults) {
    try {
      const kept = JSON.parse(read("settings"));
      const isWhole = kept.length === defaults.length;
      return isWhole && kept.every((value, index) => typeof value === typeof defaults[index]) ? kept : defaults;
    } catch {
      return defaults; // none, or damaged ones
    }
  }

  // The values of Components.view: chatbot, box, note, retry, system.
  function view() {
    const record = records.get(current);
    const isRunning = runningTurn(current) !== undefined;
    keepPlace();
    drawList();
    return [
      record ? shownMessages(record) : [],
      update({ submit_btn: !isRunning, stop_btn: isRunning }),
      noteHtml(record?.note),
      update({ visible: Boolean(record) && !isRunning }),
      record ? record.system : draftSystem,
    ];
  }

  const unchanged = () => Array(5).fill(undefined); // of Components.view

  // Closed once a conversation is chosen, where it would cover the page.
  const sidebar = () => (innerWidth < NARROW_PX ? update({ open: false }) : undefined);

  // Turns ------------------------------------------------------------------------------------------------

  const toLastQuestion = (messages) =>
    messages.slice(0, messages.findLastIndex((message) => message.role === "user") + 1);

  // Returns the turn for the server, and what to show until it is answered.
  function begin(record, messages, values) {
    record.messages = messages;
    record.asked = Date.now();
    record.note = { is_over: false, has_text: false };
    const turn = newId();
    turns.set(turn, record.id);
    records.set(record.id, record);
    current = record.id;
    save(record);
    const settings = Object.fromEntries(SETTINGS.map((name, index) => [name, values[index]]));
    return [{ id: turn, messages, settings }, ...view()];
  }

  const nothing = () => [null, ...unchanged()];

  function ask(question, ...values) {
    if (!question.trim() || runningTurn(current) !== undefined) return nothing();
    const record = records.get(current) ?? { id: newId(), system: draftSystem };
    const begun = begin(record, [...(record.messages ?? []), { role: "user", content: question }], values);
    draftSystem = "";
    begun[2].value = ""; // the box
    return begun;
  }

  function retry(...values) {
    const record = records.get(current);
    if (!record || runningTurn(current) !== undefined) return nothing();
    return begin(record, toLastQuestion(record.messages), values);
  }

  function edit({ index, content }, ...values) {
    const record = records.get(current);
    if (!record || !content.trim() || runningTurn(current) !== undefined) return [null, ...view()];
    return begin(record, [...record.messages.slice(0, index), { role: "user", content }], values);
  }

  function grow(states) {
    let isOver = false;
    for (const [turn, { text: answer, ...state }] of Object.entries(states ?? {})) {
      const record = records.get(turns.get(turn));
      if (!record) continue; // over, and already shown
      const questions = toLastQuestion(record.messages);
      record.messages = answer ? [...questions, { role: "assistant", content: answer }] : questions;
      record.note = { ...state, has_text: Boolean(answer) };
      if (state.is_over) isOver = turns.delete(turn);
      if (state.is_over || Date.now() - saved.get(record.id) > SAVE_EVERY_MS) save(record);
    }
    if (isOver) return view();
    drawList();
    const shown = runningTurn(current) === undefined ? undefined : records.get(current);
    return [shown && shownMessages(shown), undefined, shown && noteHtml(shown.note), undefined, undefined];
  }

  // The server did not finish the turns it started. When it cannot be reached at all, Gradio itself says so,
  // blocks the page, and reloads it when the server is back.
  function lose() {
    for (const id of turns.values()) {
      const record = records.get(id);
      record.note = { is_over: true, error: text("lost") };
      save(record);
    }
    turns.clear();
    return view();
  }

  // Language, colours, settings --------------------------------------------------------------------------

  function translate() {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    drawList();
    return LABELS[language].map(update);
  }

  function switchLanguage() {
    language = language === "zh" ? "en" : "zh";
    write("language", language);
    return [noteHtml(records.get(current)?.note), ...translate()];
  }

  function switchTheme() {
    const isDark = document.body.classList.toggle("dark");
    write("theme", isDark ? "dark" : "light");
  }

  function start(...defaults) {
    const theme = read("theme");
    if (theme) document.body.classList.toggle("dark", theme === "dark");
    loadAll();
    for (const record of records.values()) {
      // The page was closed before the answer was complete.
      if (record.note && !record.note.is_over) record.note = null;
    }
    const here = keptPlace();
    current = records.has(here) ? here : null;
    return [...view(), ...keptSettings(defaults), ...translate(), sidebar()];
  }

  return {
    ask,
    edit,
    grow,
    lose,
    retry,
    start,
    switchLanguage,
    switchTheme,
    choose: () => [...view(), sidebar()],
    attach(element, trigger) {
      list = element;
      drawn = "";
      select = trigger;
      drawList();
    },
    startNew() {
      current = null;
      return [...view(), sidebar()];
    },
    removeCurrent() {
      remove(current);
      return view();
    },
    stopped: () => runningTurn(current) ?? "",
    setSystem(system) {
      const record = records.get(current);
      if (!record) {
        draftSystem = system;
      } else if (record.system !== system) {
        record.system = system;
        save(record);
      }
    },
    keepSettings(...values) {
      write("settings", JSON.stringify(values));
    },
  };
})();
